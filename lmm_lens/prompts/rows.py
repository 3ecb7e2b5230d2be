"""Which query rows a read or an edit acts on, in the prompt and while generating.

Row scope is part of a question: zeroing a head in all rows, in the rows after the image, or in the last row
are three different experiments, so the scope is always named.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..core.rows import Rows
from ..errors import HookError, unknown
from .prompt import MASKS, Prompt

RowsLike = str | Sequence[int] | Tensor
"""A mask name of the prompt, "answer" (the first generated token), "generating" (the last prompt token and all
generated ones: the rows whose output is the next token), positions, or Bool[batch, position]."""


_BOUND: WeakKeyDictionary[Prompt, dict[str, Rows]] = WeakKeyDictionary()
"""One object a scope of a prompt, so that taps of all layers share what is computed of its rows in each pass."""


def bind_rows(rows: RowsLike, prompt: Prompt) -> Rows:
    """A row scope of a prompt.

    Args:
        rows: a mask name, "answer", "generating", positions that hold for every batch row, or Bool[batch, position].

    Raises:
        HookError: no such scope, positions outside the prompt, or positions that are padding in a batch row.
    """
    if isinstance(rows, str):
        bound = _BOUND.setdefault(prompt, {})
        if rows not in bound:
            bound[rows] = _named(rows, prompt)
        return bound[rows]
    try:
        given = torch.as_tensor(rows)
    except (TypeError, ValueError, RuntimeError):
        given = torch.empty(0, 0)
    if given.dtype == torch.bool:
        if given.shape != prompt.mask("all").shape:
            raise HookError(
                f"a mask of rows must be Bool[batch, position] = {tuple(prompt.mask('all').shape)}, "
                f"given {tuple(given.shape)}"
            )
        return Rows("mask", given.cpu())
    if given.ndim != 1 or (given.is_floating_point() and given.numel()):
        raise HookError(
            f"rows are a mask name, positions, or Bool[batch, position], given {rows!r}\n"
            f"  mask names: {', '.join([*MASKS, 'answer', 'generating'])}"
        )
    positions = [int(position) for position in given.tolist()]
    outside = [position for position in positions if not 0 <= position < prompt.n_tokens]
    if outside:
        raise HookError(f"positions {outside} lie outside the prompt, which has positions 0 to {prompt.n_tokens - 1}")
    mask = torch.zeros_like(prompt.mask("all"))
    mask[:, positions] = True
    padding = (mask & ~prompt.mask("all")).nonzero().tolist()
    if padding:
        row, position = padding[0]
        raise HookError(
            f"positions hold for every batch row, and position {position} is padding in row {row}\n"
            "  give each row its own: a mask name, or a mask Bool[batch, position]"
        )
    return Rows(f"positions {positions}", mask)


def _named(rows: str, prompt: Prompt) -> Rows:
    everyone = torch.ones(prompt.n_rows, dtype=torch.bool)
    if prompt.masks.keys() != MASKS.keys() and rows not in prompt.masks:  # of a vision tower
        raise HookError(unknown("row scope of the vision tower", rows, list(prompt.masks)))
    if rows == "answer":
        return Rows(rows, torch.zeros_like(prompt.mask("all")), (0, 1), everyone)
    if rows == "generating":
        return Rows(rows, prompt.mask("last"), (0, None), everyone)
    if rows not in prompt.masks:
        raise HookError(unknown("row scope", rows, [*MASKS, "answer", "generating"]))
    mask = prompt.mask(rows)
    if rows in ("all", "text"):
        return Rows(rows, mask, (0, None), everyone)
    if rows == "after_image":
        seen = prompt.mask("visual").any(1)
        return Rows(rows, mask, (0, None) if bool(seen.any()) else (0, 0), seen)
    return Rows(rows, mask)
