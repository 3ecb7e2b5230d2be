"""Figures of several pictures, each with numbers laid over it, on one scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from jaxtyping import Float
from torch import Tensor

from .axes import COLORS, new_figure
from .canvas import Canvas

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_COLUMNS = 6
EDGE = 2.4
"""Inches of a panel's longer side."""


class Panel(NamedTuple):
    """One picture of a figure.

    Attributes:
        title: above it.
        canvas: the picture.
        weights: Float[position], what is laid over it.
    """

    title: str
    canvas: Canvas
    weights: Float[Tensor, " position"]


def figure_of_panels(
    panels: Sequence[Panel],
    label: str,
    n_columns: int | None = None,
    colors: str = COLORS,
    low: float = 0.0,
    high: float | None = None,
    title: str = "",
) -> Figure:
    """A figure of panels, row by row, with one colour bar.

    Args:
        panels: what to draw.
        label: of the colour bar, with the unit.
        n_columns: panels in a line; six at most by default.
        colors: matplotlib's name of the scale.
        low, high: its ends; by default 0 and the largest number that is drawn.
        title: above all.
    """
    columns = min(len(panels), MOST_COLUMNS) if n_columns is None else n_columns
    rows = -(-len(panels) // columns)
    sides = [(p.canvas.extent.x1 - p.canvas.extent.x0, p.canvas.extent.y1 - p.canvas.extent.y0) for p in panels]
    scale = EDGE / max(max(side) for side in sides)
    width, height = (scale * max(side[i] for side in sides) for i in (0, 1))
    figure = new_figure(columns * (width + 0.12) + 1.0, rows * (height + 0.42) + (0.4 if title else 0.1))
    axes = figure.subplots(rows, columns, squeeze=False)
    if high is None:
        drawn = [panel.weights[list(panel.canvas.positions)].nan_to_num() for panel in panels]
        high = max(float(numbers.max()) for numbers in drawn) or 1.0
    shown = None
    for ax, panel in zip(axes.flat, panels, strict=False):
        shown = panel.canvas.draw_weights(ax, panel.weights, low, high, colors)
        ax.set_title(panel.title, fontsize=8)
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    if shown is not None:
        figure.colorbar(shown, ax=list(axes.flat), shrink=0.85, pad=0.01).set_label(label, fontsize=8)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure
