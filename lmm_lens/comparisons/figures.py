"""The figure of a comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..figures import new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .comparison import Comparison

INK, PALE = "#1b4f72", "#9a9a9a"


def plot_comparison(compared: Comparison, ax: Axes | None = None) -> Axes:
    """One line a condition: its mean as a dot, its 95% interval as a bar; controls in grey below what they control.

    Args:
        compared: it.
        ax: where; a new figure by default.
    """
    from .comparison import CONTROLS

    table = compared.to_pandas()
    ax = ax or new_axes(5.6, 1.1 + 0.34 * len(table))
    for place, row in enumerate(table.to_dict("records")):
        color = PALE if row["condition"].endswith(CONTROLS) else INK
        ax.hlines(place, row["low"], row["high"], color=color, linewidth=2)
        ax.plot(row["value"], place, "o", color=color, markersize=6)
    start = float(table.loc[table["condition"] == compared.baseline, "value"].iloc[0])
    ax.axvline(start, color=INK, linewidth=0.8, linestyle=":", zorder=0)
    ax.set_yticks(range(len(table)), table["condition"])
    if not ax.yaxis_inverted():  # axes that share it would turn it back
        ax.invert_yaxis()
    ax.margins(y=0.12)
    if bool(((compared.values == 0) | (compared.values == 1)).all()):
        ax.set_xlim(-0.02, 1.02)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_xlabel(f"{compared.metric}, mean of {len(compared.ids)} items and 95% interval", fontsize=9)
    return ax
