"""Gemma 3: a begin token, a square of patches, an end token. Pan and scan adds a square for each crop, amid prose.

How many crops a picture has, and where they lie, follows from its size alone; tensors alone do not tell crops from
pictures, so that without pictures every square counts as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor, isqrt

from lmm_lens.errors import PromptError
from lmm_lens.prompts.spans import Box, Span

from .picture import Size
from .row import BatchRow, TokenRun
from .square import Square


class Gemma3(Square):
    """Gemma 3 with pictures, with or without pan and scan."""

    family = "gemma3"
    model_types = ("gemma3", "shieldgemma2")

    @property
    def side(self) -> int:
        return isqrt(self.config.mm_tokens_per_image)

    @property
    def cell(self) -> int:
        patch = int(self.config.vision_config.patch_size)
        return self.edge // patch // self.side * patch  # patches are pooled

    @property
    def marker_ids(self) -> frozenset[int]:
        return frozenset({self.config.boi_token_index, self.config.eoi_token_index})

    def images(self, row: BatchRow, found: list[TokenRun]) -> list[Span]:
        squares = super().images(row, found)
        if row.pictures is None:
            return squares
        whole = [(picture.index, 0, Box(0, 0, *picture.size)) for picture in row.pictures]
        parts = whole
        if len(squares) != len(whole):
            parts = [part for p in row.pictures for part in self._parts(p.index, p.size)]
        if len(squares) != len(parts):
            raise PromptError(
                f"{len(squares)} squares of image tokens were found for {len(whole)} pictures\n"
                f"  expected {len(whole)}, or {len(parts)} with this processor's pan and scan\n"
                "  process text and pictures with the model's own processor"
            )
        return [
            Span("image", square.positions, image, tile, square.grid, region)
            for square, (image, tile, region) in zip(squares, parts, strict=True)
        ]

    def n_found(self, kind: str, spans: Sequence[Sequence[Span]]) -> int:
        """Every crop is an entry of its own."""
        return sum(span.kind == kind for row in spans for span in row)

    def _parts(self, image: int, size: Size) -> list[tuple[int, int, Box]]:
        names = ("min_crop_size", "max_num_crops", "min_ratio_to_activate")
        limits = [self.processor.images_kwargs[f"pan_and_scan_{name}"] for name in names]
        return [(image, tile, box) for tile, box in enumerate([Box(0, 0, *size), *crops(size, *limits)])]


def crops(size: Size, min_crop_size: int, max_num_crops: int, min_ratio_to_activate: float) -> list[Box]:
    """The crops of pan and scan: equal parts along the longer side, where that is long enough.

    Args:
        size: (width, height) of the picture.
        min_crop_size, max_num_crops, min_ratio_to_activate: the processor's settings.
    """
    long, short = max(size), min(size)
    if long / short < min_ratio_to_activate:
        return []
    count = min(floor(long / min_crop_size), floor(long / short + 0.5))
    count = min(max_num_crops, max(2, count))
    step = ceil(long / count)
    if min(step, short) < min_crop_size:
        return []
    along = [(step * i, min(step * (i + 1), long)) for i in range(count)]
    wide = size[0] >= size[1]
    return [Box(a, 0, b, short) if wide else Box(0, a, short, b) for a, b in along]
