"""Which visual tokens are meant: those under boxes of a picture, or those that are named."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from ..errors import ScoreError
from ..prompts.prompt import Prompt

BoxesOfRow = Sequence[float] | Sequence[Sequence[float]] | None
Relevant = Sequence[Sequence[int] | Tensor] | Tensor


def _listed(entry: Sequence[float] | Sequence[Sequence[float]]) -> list[Sequence[float]]:
    """A row's boxes, of which one alone may be given bare."""
    given: list[Any] = list(entry)
    return given if isinstance(given[0], Sequence) else [given]


def region_mask(prompt: Prompt, boxes: Sequence[BoxesOfRow], n_before: int = 0) -> Bool[Tensor, "batch position"]:
    """The patches of each row's first picture under its boxes; ScoreError for a row or a box that has none."""
    mask = torch.zeros_like(prompt.mask("visual"))
    for row, entry in enumerate(boxes):
        where = f"prompt row {n_before + row}"
        if not isinstance(entry, Sequence) or not entry:
            raise ScoreError(
                f"{where} has no box but {entry!r}\n"
                "  give one entry a row: (x0, y0, x1, y1) in pixels, or a list of such boxes"
            )
        for box in _listed(entry):
            positions = prompt.positions_in_box(box, row=row)
            if not positions:
                raise ScoreError(
                    f"the box {tuple(box)} of {where} covers no patch, so its mass would be 0 and mean nothing\n"
                    "  boxes are in pixels of the picture as given; a centre crop may have cut this part away"
                )
            mask[row, list(positions)] = True
    return mask


def relevant_mask(prompt: Prompt, relevant: Relevant, n_before: int = 0) -> Bool[Tensor, "batch position"]:
    """The relevant tokens of each row; ScoreError for a row that has none, or some that are no visual tokens."""
    visual = prompt.mask("visual")
    mask = torch.zeros_like(visual)
    for row, entry in enumerate(relevant):
        where = f"prompt row {n_before + row}"
        positions = _positions(entry, prompt.n_tokens)
        if not positions:
            given = f"a {entry.dtype} of {tuple(entry.shape)}" if isinstance(entry, Tensor) else repr(entry)
            raise ScoreError(
                f"{where} has no relevant tokens but {given}\n"
                f"  give one entry a row: positions, or a Bool[position] of its {prompt.n_tokens} tokens"
            )
        wrong = [p for p in positions if not (0 <= p < prompt.n_tokens and bool(visual[row, p]))]
        if wrong:
            raise ScoreError(
                f"the tokens at positions {wrong} of {where} are not visual tokens\n"
                '  positions count from the start of the padded row; prompt.mask("visual") has all of them'
            )
        mask[row, positions] = True
    return mask


def _positions(entry: Sequence[int] | Tensor, n_tokens: int) -> list[int]:
    """Positions from positions or from a mask; none where it is neither."""
    with suppress(TypeError, ValueError, RuntimeError):  # what torch raises of things that are no numbers
        given = torch.as_tensor(entry)
        if given.dtype == torch.bool and given.shape == (n_tokens,):
            return given.nonzero().flatten().tolist()
        if given.dtype in (torch.int32, torch.int64) and given.ndim == 1:
            return given.tolist()
    return []
