"""Gemma 3n: one square of soft tokens a picture between a begin and an end, from a tower of convolutions.

A token is a cell of the tower's last feature map, which draws on a wide surrounding: its box is where it lies.
"""

from __future__ import annotations

from math import isqrt
from typing import Any

from lmm_lens.prompts.spans import Box, Span

from .base import Adapter
from .row import BatchRow, TokenRun
from .square import Square, square_spans


class Gemma3n(Square):
    """Gemma 3n with pictures."""

    family = "gemma3n"
    model_types = ("gemma3n",)
    has_tower_heads = False

    @property
    def side(self) -> int:
        return isqrt(self.config.vision_soft_tokens_per_image)

    @property
    def marker_ids(self) -> frozenset[int]:
        return frozenset({self.config.boi_token_id, self.config.eoi_token_id})

    def images(self, row: BatchRow, found: list[TokenRun]) -> list[Span]:
        pixels: Any = row.inputs.get("pixel_values")
        if pixels is None and not row.pictures:  # the tower's output alone: the pixels are not known
            return Adapter.images(self, row, found)
        edge = pixels.shape[-1] if pixels is not None else 1
        regions = [self.region(picture.size) for picture in row.pictures or ()]
        return square_spans(found, self.side, regions, Box(0, 0, edge, edge))
