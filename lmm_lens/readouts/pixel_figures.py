"""Pixel attributions over the pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..errors import ScoreError, unknown
from ..figures.axes import COLORS, EFFECT_COLORS, OVERLAY, new_figure
from .pixel_map import UNITS, PixelAttribution

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EDGE = 2.8
"""Inches of a panel's longer side."""
MOST_COLUMNS = 5
STRONGEST = 0.99
"""The share of all pixels that lies within the scale: a few are far larger, and would leave all others pale."""


def over_pictures(result: PixelAttribution, by: str, high: float | None) -> Figure:
    """`PixelAttribution.plot` documents the arguments."""
    import numpy as np
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    if by not in ("patch", "pixel"):
        raise ScoreError(unknown("way to draw a pixel attribution", by, ("patch", "pixel")))
    grids = [
        [result.weights[list(span.positions)].reshape(span.grid or (1, -1)) for span in canvas.spans]
        if by == "patch"
        else result.grid(canvas)
        for canvas in result.canvases
    ]
    sizes = torch.cat([grid.abs().flatten() for each in grids for grid in each])
    share = STRONGEST if by == "pixel" else 1.0
    largest = high or float(np.quantile(sizes.numpy(), share)) or float(sizes.max()) or 1.0
    signed = result.method != "gradient"
    scale, colors = (Normalize(-largest, largest), EFFECT_COLORS) if signed else (Normalize(0, largest), COLORS)
    columns = min(len(grids), MOST_COLUMNS)
    lines = -(-len(grids) // columns)
    sides = [(each.extent.x1 - each.extent.x0, each.extent.y1 - each.extent.y0) for each in result.canvases]
    inch = EDGE / max(max(side) for side in sides)
    width, height = (inch * max(side[axis] for side in sides) for axis in (0, 1))
    figure = new_figure(columns * (width + 0.15) + 1.0, lines * (height + 0.35) + 0.4)
    axes = figure.subplots(lines, columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, canvas, each in zip(axes.flat, result.canvases, grids, strict=False):
        canvas.draw(ax)
        for span, grid in zip(canvas.spans, each, strict=True):
            assert span.region is not None
            heat = grid.double().numpy()
            ax.imshow(
                heat,
                extent=(span.region.x0, span.region.x1, span.region.y1, span.region.y0),
                cmap=colors,
                norm=scale,
                alpha=np.clip(np.abs(heat) / largest, 0, 1) ** 0.5 * OVERLAY,
                interpolation="nearest",
            )
        ax.set(xlim=(canvas.extent.x0, canvas.extent.x1), ylim=(canvas.extent.y1, canvas.extent.y0))
        ax.set_axis_on()
        ax.set_title(canvas.name, fontsize=8)
    bar = figure.colorbar(ScalarMappable(scale, colors), ax=list(axes.flat), shrink=0.85, pad=0.01)
    bar.set_label(UNITS[result.method] if by == "patch" else f"{UNITS[result.method]}, by pixel", fontsize=8)
    figure.suptitle(" against ".join(map(repr, result.answers)), fontsize=9)
    return figure
