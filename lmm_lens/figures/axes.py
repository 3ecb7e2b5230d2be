"""Axes that show themselves in notebooks, their files, their ticks; the colours of effects."""

from __future__ import annotations

import io
import os
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = "viridis"
"""Of attention and of every score: a ramp from dark violet to yellow, as in the viewer; equal steps look equal."""
EFFECT_COLORS = "RdBu_r"
OVERLAY = 0.6
"""The most opaque that anything over a picture is: its colours stay to be seen."""
WIDEST, HIGHEST = 6.8, 5.6
"""Inches of a map of heads, so that 32 x 32 of them can be read at the width of a column."""
FAINTEST_EFFECT = 0.02  # the scale of effects never ends below it, so that noise stays pale
N_TICKS = 16


def new_axes(width: float, height: float) -> Axes:
    """Axes of a figure of their own, in inches; as the last value of a notebook's cell they show themselves."""
    figure = new_figure(width, height)
    ax = figure.subplots()
    vars(ax)["_repr_png_"] = vars(figure)["_repr_png_"]
    return ax


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches; as the last value of a notebook's cell it shows itself."""
    # not pyplot: it keeps every figure alive and needs a display where one is configured
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")

    def as_png() -> bytes:
        page = io.BytesIO()
        figure.savefig(page, format="png")
        return page.getvalue()

    vars(figure)["_repr_png_"] = as_png  # what a notebook asks for
    return figure


def save_figure(ax: Axes, path: str | os.PathLike[str] | IO[bytes]) -> None:
    """Write the figure that some axes belong to; the ending of the name says the format, PNG where there is none."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.savefig(path)


def tick_heads(ax: Axes, n_layers: int, n_heads: int) -> None:
    """Ticks of a layer x head map, at most so many that they can be read."""
    for axis, n in ((ax.xaxis, n_heads), (ax.yaxis, n_layers)):
        axis.set_ticks(range(0, n, max(1, n // N_TICKS)))
