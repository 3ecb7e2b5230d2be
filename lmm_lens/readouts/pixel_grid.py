"""Numbers of a model's pixels laid out as the picture lies, where the input holds it so."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..prompts.spans import Span

COLOURS = 3


def pixel_grid(
    span: Span,
    values: Mapping[str, Tensor],
    places: Mapping[str, Tensor],
    weights: Float[Tensor, " position"],
    method: str,
) -> Float[Tensor, "row column"]:
    """The numbers of a span, colours added up (of a gradient: their sizes).

    Args:
        span: with its grid.
        values, places, weights, method: of a `PixelAttribution`.

    Returns:
        One for each processed pixel, row by row of the picture, where every token's pixels are one rectangle of one
        picture of the input, all of one size; else one for each token.
    """
    assert span.grid is not None
    rows, columns = span.grid
    for name, value in values.items():
        cut = _rectangles(span, _colours_last(value), _colours_last(places[name]), method)
        if cut is not None:
            height, width = cut.shape[1:]
            laid = cut.reshape(rows, columns, height, width).transpose(1, 2)
            return laid.reshape(rows * height, columns * width)
    return weights[list(span.positions)].reshape(rows, columns)


def _colours_last(x: Tensor) -> Tensor | None:
    """[picture, y, x, colour] of an input that holds pictures; None of any other."""
    if x.ndim >= 4 and x.shape[-3] == COLOURS:
        return x.flatten(0, -4).movedim(1, -1)
    return x if x.ndim == 4 and x.shape[-1] == COLOURS else None


def _rectangles(
    span: Span, values: Float[Tensor, "picture y x 3"] | None, places: Int[Tensor, "picture y x 3"] | None, method: str
) -> Float[Tensor, "token down across"] | None:
    if values is None or places is None:
        return None
    owner = places[..., 0]  # an empty picture beside others has no token in any colour
    summed = (values.double().abs() if method == "gradient" else values.double()).sum(-1)
    cut: list[Tensor] = []
    for position in span.positions:
        where = (owner == position).nonzero()
        if not len(where) or int(where[0, 0]) != int(where[-1, 0]):
            return None
        picture, low, high = int(where[0, 0]), where[:, 1:].amin(0).tolist(), (where[:, 1:].amax(0) + 1).tolist()
        found = summed[picture, low[0] : high[0], low[1] : high[1]]
        if found.numel() != len(where) or (cut and found.shape != cut[0].shape):
            return None
        cut.append(found)
    return torch.stack(cut).float()
