"""Figures of words: where a word is likely, and what the patches say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import ScoreError, unknown
from ..figures.axes import new_figure
from ..figures.canvas import Canvas, check_boards
from ..figures.panels import Panel, figure_of_panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .words import LogitLens

SCALES = {"probability": "probability", "logit": "logit", "rank": "-log10 of the rank (0 is the likeliest word)"}
INCHES, LONGEST = 0.62, 8  # of a patch, and letters written in it


def word_maps(readout: LogitLens, word: str, by: str, layers: tuple[int, ...], row: int) -> Figure:
    """See `LogitLens.plot`."""
    if by not in SCALES:
        raise ScoreError(unknown("number of a word", by, SCALES))
    canvases = readout.canvases[row] if 0 <= row < len(readout.canvases) else ()
    check_boards(canvases, row)
    numbers = getattr(readout, by)(word).double()
    numbers = -numbers.log10() if by == "rank" else numbers
    panels = [
        Panel(
            f"after layer {layer}" + (f"\n{canvas.name}" if len(canvases) > 1 else ""),
            canvas,
            _placed(readout, numbers[readout.layer_index(layer), row], row),
        )
        for layer in layers
        for canvas in canvases
    ]
    shown = torch.cat([panel.weights[list(panel.canvas.positions)] for panel in panels])
    shown = shown[~shown.isnan()]
    if not len(shown):
        raise ScoreError('no visual token was read, so there is no map: read rows="image" or "visual"')
    low = 0.0 if by == "probability" else float(shown.min())
    high = float(shown.max()) if by != "rank" else 0.0
    forms = " and ".join(repr(form.text) for form in readout.forms if form.word == word.strip())
    columns = len(canvases) if len(canvases) > 1 and len(layers) > 1 else None
    return figure_of_panels(panels, SCALES[by], columns, "viridis", low, high, f"{word!r}, as {forms}")


def words_over_picture(canvas: Canvas, words: Mapping[int, tuple[str, float]], title: str) -> Figure:
    """A word written over each patch.

    Args:
        canvas: the picture.
        words: by position of the patch's token, with how strong each is, 0 to 1: the fainter, the weaker.
        title: above it.
    """
    width, height = canvas.extent.x1 - canvas.extent.x0, canvas.extent.y1 - canvas.extent.y0
    first = canvas.box(canvas.positions[0])
    inches = INCHES / (first.x1 - first.x0)
    figure = new_figure(min(width * inches, 20.0) + 0.2, min(height * inches, 20.0) + 0.4)
    ax = figure.subplots()
    canvas.draw(ax)
    for position in canvas.positions:
        if position not in words:
            continue
        text, strength = words[position]
        text, box = text.strip() or "␣", canvas.box(position)
        ax.text(
            (box.x0 + box.x1) / 2,
            (box.y0 + box.y1) / 2,
            text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…",
            ha="center",
            va="center",
            fontsize=6,
            color="black",
            parse_math=False,
            bbox={"boxstyle": "round,pad=0.15", "facecolor": (1, 1, 1, 0.25 + 0.65 * strength), "edgecolor": "none"},
        )
    ax.set_title(title, fontsize=9)
    return figure


def _placed(readout: LogitLens, numbers: Float[Tensor, " query"], row: int) -> Float[Tensor, " position"]:
    """Numbers of the tokens that were read, by position in the sequence; NaN elsewhere."""
    placed = torch.full((len(readout.tokens[row]),), torch.nan, dtype=torch.float64)
    real = readout.positions[row] >= 0
    placed[readout.positions[row][real]] = numbers[real]
    return placed
