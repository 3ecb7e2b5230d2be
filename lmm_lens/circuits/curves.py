"""Figures of what is kept: the faithfulness of circuits and of sets of heads, over their size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..figures import new_axes
from .figures import GREY, RED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .faithfulness import Faithfulness
    from .heads import SmallestHeads


def faithfulness_curve(curve: Faithfulness, ax: Axes | None = None) -> Axes:
    """f over the share of edges kept, on a scale of powers of ten, with its interval; random circuits in grey.

    Args:
        curve: what to draw.
        ax: where; a new figure by default.
    """
    ax = ax or new_axes(5.4, 3.4)
    share = 100 * curve.sizes.numpy() / curve.n_edges
    for index, values in enumerate(curve.random_values.numpy()):
        label = f"{len(curve.random)} random circuits, CPR {float(curve.random_cpr.mean()):.2f}" if not index else None
        ax.plot(share, values, color=GREY, linewidth=0.9, label=label)
    if len(curve.clean_ld) > 1:
        low, high = curve.interval()
        ax.fill_between(share, low.numpy(), high.numpy(), color=RED, alpha=0.18, linewidth=0)
    label = f"best edges by {curve.method}, CPR {curve.cpr:.2f}, CMD {curve.cmd:.2f}"
    ax.plot(share, curve.values.numpy(), color=RED, marker="o", markersize=3.5, linewidth=1.6, label=label)
    for level in (0, 1):
        ax.axhline(level, color="black", linewidth=0.6, linestyle=":")
    if (share > 0).all():
        ax.set_xscale("log")
        ticks = [tick for tick in (0.1, 1, 10, 100) if tick >= share.min() * 0.9]
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.minorticks_off()
    top = np.nanmax([1.15, float(curve.values.max()) + 0.1])
    ax.set(xlabel="edges kept, % of the model's", ylabel="faithfulness (0 corrupt, 1 clean)", ylim=(None, top))
    known = f", {curve.n_known} of them those it was found on" if curve.n_known else ""
    ax.set_title(f"{len(curve.clean_ld)} pairs{known}", fontsize=9)
    figure = ax.get_figure(root=True)
    if figure is not None and len(figure.axes) == 1:
        figure.legend(loc="outside lower center", fontsize=7, frameon=False)
    else:
        ax.legend(fontsize=7, frameon=False)
    return ax


def heads_curve(found: SmallestHeads, ax: Axes | None = None) -> Axes:
    """What sets of heads keep over their size; `SmallestHeads.plot` documents the arguments."""
    ax = ax or new_axes(5.0, 3.2)
    ax.axhline(found.keep, color="black", linewidth=0.6, linestyle=":")
    if len(found.random):
        values = found.random_values.numpy()
        ax.scatter([found.n_kept] * len(values), values, color=GREY, s=14, label=f"{len(values)} random sets like it")
    ax.plot(found.sizes, found.values.numpy(), color=RED, linewidth=1.6, marker="o", markersize=2.5)
    ax.scatter([found.n_kept], [float(found.values[found.sizes.index(found.n_kept)])], color=RED, s=36, zorder=3)
    where = "other prompts" if found.held_out else "the prompts they were ordered on"
    ax.set_title(f"{found.n_kept} heads keep {found.keep:g}, ordered by {found.by}; {where}", fontsize=9)
    ax.set(xlabel="heads kept, all others ablated", ylabel=f"share of {found.metric.replace('_', ' ')} kept")
    if len(found.random):
        ax.legend(fontsize=7, frameon=False)
    return ax
