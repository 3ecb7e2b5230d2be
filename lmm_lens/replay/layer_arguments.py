"""What a decoder layer was given beside its residual stream, cut down to one row of the batch and some tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

BY_COLUMN = ("position_ids", "cache_position", "position_embeddings_ids")
"""Integers by token, whose last dimension is the tokens whatever stands before it."""


@dataclass(frozen=True)
class Excerpt:
    """One row of a recorded batch and some of its tokens, for so many copies.

    Attributes:
        row: of the batch.
        rows: which tokens.
        n_batch, n_tokens: of the recorded prompt.
        n_copies: how many copies the layer is going to be given.
    """

    row: int
    rows: slice
    n_batch: int
    n_tokens: int
    n_copies: int

    def of(self, name: str, value: Any) -> Any:
        """One argument of a layer, cut down.

        Args:
            name: of the argument, empty for a positional one.
            value: as it was given.
        """
        if isinstance(value, tuple):
            return tuple(self.of(name, part) for part in value)
        if not isinstance(value, Tensor) or value.ndim == 0:
            return value
        if name == "attention_mask" and value.ndim == 4:
            return None  # the replay's attention has its own
        if name == "cross_attention_states":  # its layers take it apart by the batch of the residual stream
            states = value.reshape(self.n_batch, -1, value.shape[-1])[self.row : self.row + 1]
            return states.expand(self.n_copies, -1, -1)
        tokens = value.ndim - 1 if name in BY_COLUMN or value.ndim < 3 else value.ndim - 2
        if value.shape[tokens] != self.n_tokens:
            tokens = value.ndim  # nothing in it is by token
        batch = _batch_of(name, value, tokens, self.n_batch)
        if batch is not None:
            value = value.narrow(batch, self.row, 1)
        if tokens < value.ndim:
            value = value.narrow(tokens, self.rows.start, self.rows.stop - self.rows.start)
            if value.ndim == 2 and len(value) == 1 and name not in BY_COLUMN:
                value = value.expand(self.n_copies, -1)  # kinds of tokens, by which experts are chosen row by row
        return value


def _batch_of(name: str, value: Tensor, tokens: int, n_batch: int) -> int | None:
    """The dimension of the batch: the nearest one before the tokens that is not 1; None where all rows share it."""
    if tokens == value.ndim:
        return 0 if value.ndim > 1 and value.shape[0] == n_batch else None
    # rotary embeddings may have an axis of three, for time, height and width, before the batch
    reach = range(tokens - 1, -1, -1) if name != "position_embeddings" else range(tokens - 1, max(-1, tokens - 2), -1)
    for dim in reach:
        if value.shape[dim] != 1:
            return dim if value.shape[dim] == n_batch else None
    return None
