"""Row breaks: a picture keeps its shape, and each of its rows of patches ends in a token of its own.

`([IMG] * columns [IMG_BREAK]) * rows`, where the last break is `[IMG_END]`. How many rows and columns there are follows
from `image_sizes`, the height and width of the processed pictures, which the model needs too.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

from lmm_lens.errors import PromptError
from lmm_lens.prompts.spans import Box, Span

from .base import Adapter
from .row import BatchRow, TokenRun


class Pixtral(Adapter):
    """Pixtral: LLaVA on a Pixtral tower (`Llava` hands over to it)."""

    family = "pixtral"
    has_grid = True
    images_in = ("image_sizes", "pixel_values")

    @property
    def edge(self) -> int:
        """Pixels along one side of what one token sees."""
        return int(self.config.vision_config.patch_size * getattr(self.config, "spatial_merge_size", 1))

    def images(self, row: BatchRow, found: list[TokenRun]) -> list[Span]:
        if "mm_encoder_outputs" in row.inputs and "image_sizes" not in row.inputs:
            # `generate` encodes pictures first and does not pass their sizes on; which tokens are breaks is clear still
            return [Span("image", line) for line in found] + [Span("marker", (line[-1] + 1,)) for line in found]
        spans: list[Span] = []
        for index, (height, width) in enumerate(self.sizes(row)):
            if not found:
                break
            grid = (height // self.edge, width // self.edge)
            lines, found = found[: grid[0]], found[grid[0] :]
            _check(row, lines, index, (height, width), grid)
            region = seen(row.size(index), (height, width), grid, self.edge)
            spans.append(Span("image", tuple(chain(*lines)), index, 0, grid, region))
            spans.append(Span("marker", tuple(line[-1] + 1 for line in lines), index))
        if found:
            raise PromptError(
                f"{sum(map(len, found))} image tokens from position {found[0][0]} on belong to no picture\n"
                f"  image_sizes or pixel_values tell of {len(self.sizes(row)) + row.first_picture} pictures in all\n"
                "  process text and pictures with the model's own processor"
            )
        return spans

    @staticmethod
    def sizes(row: BatchRow) -> Sequence[tuple[int, int]]:
        """(height, width) of the processed pictures, from this row's first on.

        Raises:
            PromptError: they are not known.
        """
        sizes: Any = row.inputs.get("image_sizes")
        pixels: Any = row.inputs.get("pixel_values")
        if sizes is None and pixels is None:
            raise PromptError(
                "the rows and columns of the pictures are not known: expected image_sizes, [picture, 2] as height and\n"
                f"  width of the processed pictures, given {sorted(row.inputs)}\n"
                "  the model's own processor returns them"
            )
        if sizes is None:  # the model then takes every picture to fill the tensor
            sizes = [pixels.shape[-2:]] * len(pixels)
        return [(int(height), int(width)) for height, width in sizes][row.first_picture :]


def _check(row: BatchRow, lines: list[TokenRun], index: int, size: tuple[int, int], grid: tuple[int, int]) -> None:
    given = [len(line) for line in lines]
    if not lines or given != [grid[1]] * grid[0] or lines[-1][-1] + 1 >= len(row.ids):
        raise PromptError(
            f"picture {index}, processed to {size[1]} x {size[0]} pixels, makes {grid[0]} rows of {grid[1]} image "
            f"tokens, each followed by one break\n  the text has rows of {given} image tokens instead\n"
            "  process text and pictures with the model's own processor"
        )


def seen(given: tuple[int, int] | None, processed: tuple[int, int], grid: tuple[int, int], edge: int) -> Box:
    """The part of a resized picture that whole patches cover.

    Args:
        given: (width, height) of the picture as the user gave it; None leaves processed pixels.
        processed: its (height, width) after resizing.
        grid: rows and columns of patches.
        edge: pixels along one side of a patch.
    """
    width, height = given or processed[::-1]
    return Box(0, 0, grid[1] * edge * width / processed[1], grid[0] * edge * height / processed[0])
