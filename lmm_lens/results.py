"""What a run returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .prompt import Prompt

if TYPE_CHECKING:
    from .native.session import Kept

Reads = dict[tuple[str, int], Tensor]


@dataclass(frozen=True, eq=False)
class Run:
    """One forward pass.

    Attributes:
        prompt: what was run.
        logits: Float[batch, position, vocab], or [batch, 1, vocab] with `logits="last"`.
        reads: (name, layer) to what was read, [batch, row, ...] (at `pattern` [batch, head, row, ...]).
        positions: name to the absolute position of each row that was read, -1 where a batch row has fewer.
        edited: for each intervention, in words, how many rows times heads (or residual streams) it edited.
    """

    prompt: Prompt
    logits: Float[Tensor, "batch position vocab"]
    reads: Mapping[tuple[str, int], Tensor] = field(default_factory=dict)
    positions: Mapping[str, Int[Tensor, "batch row"]] = field(default_factory=dict)
    edited: Mapping[str, int] = field(default_factory=dict)

    def __repr__(self) -> str:
        edits = "".join(f"\n  {name}: {count} rows edited" for name, count in self.edited.items())
        return f"Run with logits {tuple(self.logits.shape)}, {len(self.reads)} reads{edits}"


@dataclass(frozen=True, eq=False)
class Generation:
    """Generated text.

    Attributes:
        prompt: what was continued.
        text: per batch row, the answer without special tokens; empty strings without a processor.
        tokens: Int[batch, new], rows that ended early padded.
        logits: Float[batch, new, vocab] if asked for.
        reads, positions, edited: as in `Run`; the rows of all passes, one after the other.
    """

    prompt: Prompt
    text: tuple[str, ...]
    tokens: Int[Tensor, "batch new"]
    logits: Float[Tensor, "batch new vocab"] | None = None
    reads: Mapping[tuple[str, int], Tensor] = field(default_factory=dict)
    positions: Mapping[str, Int[Tensor, "batch row"]] = field(default_factory=dict)
    edited: Mapping[str, int] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Generation of {self.tokens.shape[1]} tokens: {list(self.text)}"


def collect(kept: Kept) -> tuple[Reads, dict[str, Tensor]]:
    """Join what the passes of a run kept.

    Args:
        kept: by (name, layer), for each pass the rows, the result, and which of its dimensions is the rows.

    Returns:
        The reads, and by name the rows' positions.
    """
    reads: Reads = {}
    positions: dict[str, Tensor] = {}
    for (name, layer), passes in kept.items():
        parts = [_blanked(result, rows.valid, dim) for rows, result, dim in passes]
        reads[name, layer] = torch.cat(parts, dim=passes[0][2])
        if name not in positions:
            positions[name] = torch.cat(
                [rows.positions.masked_fill(~rows.valid, -1) for rows, _, _ in passes], 1
            )
    return reads, positions


def _blanked(result: Tensor, valid: Tensor, dim: int) -> Tensor:
    """NaN in the rows that only pad a ragged batch, so that they cannot be mistaken for values."""
    if bool(valid.all()) or not result.is_floating_point():
        return result
    shape = [1] * result.ndim
    shape[0], shape[dim] = valid.shape
    return result.masked_fill(~valid.reshape(shape), torch.nan)
