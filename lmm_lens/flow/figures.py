"""The figure of the papers: the change of the answer's probability by layer, a line a route."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..figures import new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .result import InformationFlow


def flow_curves(flow: InformationFlow, ax: Axes | None = None, level: float = 0.95) -> Axes:
    """Lines with bands, each with its control dashed in the same colour.

    Args:
        flow: what to draw.
        ax: where; a new figure by default.
        level: of the bands.
    """
    ax = ax or new_axes(min(max(5.4, 0.16 * len(flow.layers) + 4.4), 10), 3.2)
    layers = list(flow.layers)
    bands = zip(*flow.interval(level), *flow.interval(level, control=True), strict=True)
    ax.axhline(0, color="#999999", linewidth=0.8)
    for number, (low, high, random_low, random_high) in enumerate(bands):
        color = f"C{number}"
        marker = "o" if len(layers) <= 16 else ""
        curve, name = flow.values[number].tolist(), flow.routes[number]
        ax.plot(layers, curve, color=color, label=name, marker=marker, markersize=3)
        ax.fill_between(layers, low.tolist(), high.tolist(), color=color, alpha=0.2, linewidth=0)
        control = flow.control[number]
        if not bool(control.isnan().all()):
            label = f"random keys, {flow.matched[number]:.0%} as many"
            ax.plot(layers, control.tolist(), color=color, linestyle="--", linewidth=1, label=label)
            ax.fill_between(layers, random_low.tolist(), random_high.tolist(), color=color, alpha=0.08, linewidth=0)
    ax.set_xticks(layers[:: max(1, len(layers) // 16)])
    ax.set(xlabel=f"middle of {flow.window} layers", ylabel="change of p(answer), %")
    ax.set_title(f"{flow.n_prompts} prompts answered rightly", fontsize=10)
    ax.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return ax
