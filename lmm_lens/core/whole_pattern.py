"""One layer's attention where all of its pattern is there, and edits of it are what the model goes on with."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import HookError
from .rows import Chunk, of_heads
from .taps import HIDDEN


class WholePattern:
    """One layer's attention as a whole pattern [batch, head, query, key], edited where it stands.

    Args:
        pattern: after the softmax.
        scores: before it, hidden keys at the lowest number; None where they are not known.
        values: Float[batch, key, kv_head, d_head], what it reads from; None where they are not known.
    """

    def __init__(self, pattern: Tensor, scores: Tensor | None, values: Tensor | None = None) -> None:
        self.pattern, self._before, self._values = pattern, scores, values
        self.shape: tuple[int, int, int, int] = (*pattern.shape,)
        self.device = pattern.device
        self._is_ours = False

    def probabilities(self, rows: Chunk, heads: tuple[int, ...] | None) -> Tensor:
        """Some rows and heads of the pattern, in fp32 or better."""
        return _cut(self.pattern, rows, heads)

    def scores(self, rows: Chunk, heads: tuple[int, ...] | None) -> Tensor:
        """The same before the softmax."""
        if self._before is None:
            raise HookError("no attention scores before the softmax are known here, which this intervention needs")
        return _cut(self._before, rows, heads)

    def visible(self, rows: Chunk, heads: tuple[int, ...] | None) -> Tensor:
        """Which keys these rows can see."""
        return self.scores(rows, heads) > HIDDEN

    def read_values(self, weights: Tensor, heads: tuple[int, ...] | None) -> Tensor:
        """What weights read from the values; HookError where these are not known."""
        values = self._values
        if values is None or values.shape[1] != weights.shape[3]:  # a bridge has those of the last step alone
            raise HookError("the values that this attention reads are not known here, so nothing can be read from them")
        chosen = range(self.shape[1]) if heads is None else heads
        shared = [head // (self.shape[1] // values.shape[2]) for head in chosen]
        return (weights @ values.transpose(1, 2)[:, shared].to(weights.dtype)).transpose(1, 2)

    def put(self, pattern: Tensor, original: Tensor, rows: Chunk, heads: tuple[int, ...] | None) -> None:
        """Put edited rows in the place of the original ones, in a copy of the pattern."""
        if not self._is_ours:
            self.pattern, self._is_ours = self.pattern.clone(), True
        by_row = self.pattern.transpose(1, 2)  # batch query head key, a view
        rows.put(by_row, pattern.transpose(1, 2).to(self.pattern.dtype), heads)

    def add(self, change: Tensor, rows: Chunk, heads: tuple[int, ...] | None) -> None:
        """Add a change of some rows to them, in a copy of the pattern."""
        original = self.probabilities(rows, heads)
        self.put(original + change, original, rows, heads)


def _cut(x: Tensor, rows: Chunk, heads: tuple[int, ...] | None) -> Tensor:
    chosen = of_heads(rows.gather(x, dim=2), heads)
    return chosen.to(torch.promote_types(x.dtype, torch.float32))
