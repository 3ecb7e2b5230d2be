"""FastVLM: one square a picture, from a tower of convolutions, whose size the token count tells.

A token is a cell of the tower's last feature map. The convolutions look beyond their cell, so that a token's box is
where it lies, not all it sees.
"""

from __future__ import annotations

from math import isqrt
from typing import Any

from lmm_lens.errors import PromptError
from lmm_lens.prompts.spans import Box, Span

from .base import Adapter
from .row import BatchRow, TokenRun
from .square import Square, square_spans


class FastVlm(Square):
    """FastVLM."""

    family = "fast_vlm"
    model_types = ("fast_vlm",)
    has_tower_heads = False

    def images(self, row: BatchRow, found: list[TokenRun]) -> list[Span]:
        pixels: Any = row.inputs.get("pixel_values")
        if pixels is None:  # the tower's output alone: neither the number of pictures nor their pixels are known
            return Adapter.images(self, row, found)
        ids: Any = row.inputs["input_ids"]
        total, edge = int((ids == self.image_token_id).sum()), pixels.shape[-1]
        side = isqrt(total // len(pixels))
        if side * side * len(pixels) != total:
            raise PromptError(
                f"{total} image tokens of a batch with {len(pixels)} pictures is no whole number of pictures\n"
                "  expected one square of tokens a picture, all of one size\n"
                "  process text and pictures with the model's own processor"
            )
        regions = [self.region(picture.size) for picture in row.pictures or ()]
        return square_spans(found, side, regions, Box(0, 0, edge, edge))
