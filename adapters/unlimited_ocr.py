"""Unlimited OCR: the crops of a picture as one grid (tile 1), the whole of it (tile 0), and a separator, in one run.

A newline after each row of both grids carries the image token too, as the separator does; they are markers.
Convolutions shrink the tower's patches to a quarter and look a little beyond a token's box.
"""

from __future__ import annotations

from typing import Any

from lmm_lens.errors import PromptError
from lmm_lens.prompts.spans import Box, Span

from .base import Adapter
from .picture import Size
from .row import BatchRow, TokenRun
from .square import fitted


class UnlimitedOcr(Adapter):
    """Unlimited OCR; crops fill the picture, the whole is padded to a square."""

    family = "unlimited_ocr"
    model_types = ("unlimited_ocr",)
    has_grid = True
    images_in = ("pixel_values",)

    @property
    def cell(self) -> int:
        """Pixels along one side of a token's box."""
        return int(self.config.vision_config.sam_config.patch_size) * 4

    def images(self, row: BatchRow, found: list[TokenRun]) -> list[Span]:
        pixels: Any = row.inputs.get("pixel_values")
        if pixels is None:  # the tower ran before, its input is gone
            return super().images(row, found)
        spans: list[Span] = []
        index = 0
        for run in found:
            rest = run
            while rest:
                entry, size = row.first_picture + index, row.size(index)
                grids = self.grids(row, entry) if entry < len(pixels) else []
                n_tokens = sum(rows * (columns + 1) for _, rows, columns in grids) + 1
                if not grids or n_tokens > len(rest):
                    raise PromptError(
                        f"image tokens and pictures do not match in the run at positions {run[0]} to {run[-1]}\n"
                        f"  {len(rest)} of its {len(run)} tokens are left for picture {entry} of {len(pixels)}\n"
                        "  process text and pictures with the model's own processor"
                    )
                for tile, rows, columns in grids:
                    held, rest = rest[: rows * (columns + 1)], rest[rows * (columns + 1) :]
                    patches = tuple(position for at, position in enumerate(held) if (at + 1) % (columns + 1))
                    newlines = tuple(position for at, position in enumerate(held) if not (at + 1) % (columns + 1))
                    region = self.region(tile, (rows, columns), size)
                    spans.append(Span("image", patches, index, tile, (rows, columns), region))
                    spans.append(Span("marker", newlines, index, tile))
                spans.append(Span("marker", rest[:1], index))
                rest, index = rest[1:], index + 1
        return spans

    def grids(self, row: BatchRow, entry: int) -> list[tuple[int, int, int]]:
        """(tile, rows, columns) of a picture's grids, in the order of the text."""
        pixels, crops = row.inputs["pixel_values"], row.inputs.get("pixel_values_local")
        side = int(pixels.shape[-1]) // self.cell
        grids = [(0, side, side)]
        if crops is not None and int(row.inputs["num_local_patches"][entry]):
            own = int(crops.shape[-1]) // self.cell
            columns, rows = (int(n) for n in row.inputs["patches_grid"][entry])
            grids.insert(0, (1, rows * own, columns * own))
        return grids

    def region(self, tile: int, grid: tuple[int, int], size: Size | None) -> Box:
        """What a grid covers, in pixels of the picture; of the grid itself where its size is not known."""
        if size is None:
            return Box(0, 0, grid[1] * self.cell, grid[0] * self.cell)
        return Box(0, 0, *size) if tile else fitted(grid[0] * self.cell, size, 1)
