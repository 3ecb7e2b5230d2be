"""Attention of towers that put all pictures into one sequence and attend picture by picture, or window by window."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InterventionError
from .attention import FusedAttention
from .rows import Chunk


def of_another() -> InterventionError:
    """Of an edit that reaches over the end of a part."""
    return InterventionError(
        "an edit gives attention to tokens of another picture or window, which these rows cannot see"
    )


class PackedPart:
    """The attention of one part of a packed sequence: the keys before it are there, and get nothing."""

    def __init__(self, fused: FusedAttention, first: int) -> None:
        self.fused, self.first = fused, first
        batch, head, row, key = fused.shape
        self.shape, self.device = (batch, head, row, first + key), fused.device

    def _placed(self, of: Tensor, fill: float | bool) -> Tensor:
        return torch.nn.functional.pad(of, (self.first, 0), value=fill)

    def probabilities(self, rows: Chunk, heads: tuple[int, ...] | None) -> Tensor:
        return self._placed(self.fused.probabilities(rows, heads), 0.0)

    def scores(self, rows: Chunk, heads: tuple[int, ...] | None) -> Tensor:
        found = self.fused.scores(rows, heads)
        return self._placed(found, torch.finfo(found.dtype).min)

    def visible(self, rows: Chunk, heads: tuple[int, ...] | None) -> Tensor:
        return self._placed(self.fused.visible(rows, heads), False)

    def read_values(self, weights: Tensor, heads: tuple[int, ...] | None) -> Tensor:
        return self.fused.read_values(weights[..., self.first :], heads)

    def put(self, pattern: Tensor, original: Tensor, rows: Chunk, heads: tuple[int, ...] | None) -> None:
        if bool((pattern[..., : self.first] != 0).any()):
            raise of_another()
        self.fused.put(pattern[..., self.first :], original[..., self.first :], rows, heads)

    def add(self, change: Tensor, rows: Chunk, heads: tuple[int, ...] | None) -> None:
        original = self.probabilities(rows, heads)
        self.put(original + change, original, rows, heads)
