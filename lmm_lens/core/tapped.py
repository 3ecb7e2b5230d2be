"""What taps of a pattern need of one layer's attention, whichever framework computes it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .rows import Chunk


class SeenAttention(Protocol):
    """One layer's attention in one pass, to be read."""

    def probabilities(self, rows: Chunk, heads: tuple[int, ...] | None) -> Tensor:
        """Some rows and heads of the pattern, in fp32 or better."""

    def scores(self, rows: Chunk, heads: tuple[int, ...] | None) -> Tensor:
        """The same before the softmax, hidden keys at `HIDDEN` or below."""

    def visible(self, rows: Chunk, heads: tuple[int, ...] | None) -> Tensor:
        """Which keys these rows can see."""

    def read_values(self, weights: Tensor, heads: tuple[int, ...] | None) -> Tensor:
        """What weights [batch, head, query, key] read from the values, [batch, query, head, d_head]."""


class TappedAttention(SeenAttention, Protocol):
    """The same to be edited, as a backend offers it.

    Attributes:
        shape: batch, head, row, key.
        device: where it is.
    """

    shape: tuple[int, int, int, int]
    device: torch.device

    def put(self, pattern: Tensor, original: Tensor, rows: Chunk, heads: tuple[int, ...] | None) -> None:
        """Put edited rows in the place of the original ones."""

    def add(self, change: Tensor, rows: Chunk, heads: tuple[int, ...] | None) -> None:
        """Add a change of some rows to them."""
