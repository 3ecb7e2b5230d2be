"""Square pictures: every picture, or every crop of one, is one run of side x side tokens, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmm_lens.prompts.spans import Box, Span

from .base import Adapter
from .picture import Size, covered, visible_region
from .row import BatchRow, TokenRun, equal_parts


class Square(Adapter):
    """What the square families share: the grid, and which part of a picture it covers."""

    has_grid = True
    images_in = ("pixel_values",)

    @property
    def lead(self) -> int:
        """Tokens before the patches of each picture that lie nowhere in it: a class token."""
        return 0

    @property
    def edge(self) -> int:
        """Pixels along one side of a processed picture."""
        return int(self.config.vision_config.image_size)

    @property
    def cell(self) -> int:
        """Pixels along one side of what one token sees."""
        return int(self.config.vision_config.patch_size)

    @property
    def side(self) -> int:
        """Tokens along one side."""
        return self.edge // self.cell

    @property
    def image_processor(self) -> Any:
        """The processor's part that sees pictures; None without a processor."""
        return getattr(self.processor, "image_processor", None)

    def region(self, size: Size) -> Box:
        """The part of a picture of this (width, height) that its processed square shows."""
        return visible_region(self.image_processor, size)

    def images(self, row: BatchRow, found: list[TokenRun]) -> list[Span]:
        share = self.side * self.cell / self.edge  # a rest that fills no patch is not seen (SigLIP: 6 pixels of 384)
        processed = Box(0, 0, self.edge, self.edge)
        given = [self.region(picture.size) for picture in row.pictures or ()] if self.image_processor else []
        regions = [covered(region, share) for region in given]
        return square_spans(found, self.side, regions, covered(processed, share), self.lead)


def square_spans(
    found: list[TokenRun], side: int, regions: Sequence[Box | None], whole: Box, lead: int = 0
) -> list[Span]:
    """Spans of a family whose every picture is one square of side x side tokens.

    Pictures that follow each other without a token between form one run, which is cut into squares.

    Args:
        found: runs of image tokens.
        side: patches along one edge.
        regions: the part of each picture that the tokens cover, as far as known.
        whole: the region to use where it is not.
        lead: tokens before the patches of each picture that lie nowhere in it (a class token).

    Raises:
        PromptError: a run is not a whole number of pictures.
    """
    size = lead + side * side
    spans: list[Span] = []
    index = 0
    for run in found:
        for part in equal_parts(run, size, "image", f"each picture, {side} x {side} patches"):
            region = regions[index] if index < len(regions) else None
            if lead:
                spans.append(Span("marker", part[:lead], index))
            spans.append(Span("image", part[lead:], index, 0, (side, side), region or whole))
            index += 1
    return spans


def fitted(edge: int, size: Size, smallest: int) -> Box:
    """The region of a picture resized so that its longer side is `edge`, then padded to a square, in the middle.

    Args:
        edge: pixels along the square's side.
        size: (width, height) of the picture as the user gave it.
        smallest: no side is made shorter than this.
    """
    scale = edge / max(size)
    width, height = (max(round(side * scale), smallest) for side in size)
    square = max(width, height)
    left, top = (square - width) // 2, (square - height) // 2  # the processors' own rounding
    across, down = size[0] / width, size[1] / height
    return Box(-left * across, -top * down, (square - left) * across, (square - top) * down)
