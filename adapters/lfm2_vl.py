"""LFM2-VL: crops behind row-and-column tags, then the whole picture as a tile of its own proportions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from lmm_lens.errors import PromptError
from lmm_lens.prompts.spans import Span, runs

from .row import BatchRow, TokenRun
from .tiles import Shape, Size, Tiled


class Lfm2Vl(Tiled):
    """The tags tell where the crops are, `spatial_shapes` how many patches each tile has."""

    family = "lfm2_vl"
    model_types = ("lfm2_vl",)
    picture = "<(?:(?:Ti+)+(?:Gi+)?|i+)>"

    @property
    def tags(self) -> Mapping[str, Sequence[str]]:
        own = self.processor
        crops = self.tokens_like(r"<\|img_row_\d+_col_\d+\|>")
        ends = {"<": [own.image_start_token], ">": [own.image_end_token]}
        return {**ends, "T": crops, "G": [own.image_thumbnail_token]}

    @property
    def shuffle(self) -> int:
        return int(self.config.downsample_factor)

    def has_thumbnail(self, letters: str, n_tiles: int) -> bool:
        return "G" in letters

    def shape(self, letters: str, ids: Sequence[int], n_crops: int, size: Size | None) -> Shape | None:
        return self.shape_of_tags(letters, ids)

    def images(self, row: BatchRow, found: list[TokenRun]) -> list[Span]:
        spans = super().images(row, found)
        if "spatial_shapes" in row.inputs:
            return spans
        return [replace(span, grid=None, region=None) for span in spans]  # the tower ran before, its input is gone

    def grids(self, row: BatchRow, index: int, held: list[int]) -> list[Shape]:
        tiles = runs(held)
        if "spatial_shapes" not in row.inputs:
            return [(1, len(tile)) for tile in tiles]
        first = self._tiles_before(row, index)
        grids = self._all_grids(row.inputs)[first : first + len(tiles)]
        if [len(tile) for tile in tiles] != [rows * columns for rows, columns in grids]:
            raise PromptError(
                f"tiles of {[len(tile) for tile in tiles]} tokens where spatial_shapes makes grids of {grids}\n"
                "  process text and pictures with the model's own processor"
            )
        return grids

    def n_tokens(self, inputs: Mapping[str, Any]) -> int | None:
        return sum(h * w for h, w in self._all_grids(inputs)) if "pixel_values" in inputs else None

    def _all_grids(self, inputs: Mapping[str, Any]) -> list[Shape]:
        shapes = inputs.get("spatial_shapes")
        if shapes is None:
            raise PromptError(
                f"spatial_shapes is missing, which tells how many patches each tile has; given {sorted(inputs)}\n"
                "  give everything that the processor returns"
            )
        return [(height // self.shuffle, width // self.shuffle) for height, width in shapes.tolist()]

    def _tiles_before(self, row: BatchRow, index: int) -> int:
        """How many tiles the batch has before this picture: a run of placeholders each."""
        ids = row.inputs["input_ids"].flatten()
        start = next(id_ for id_, letter in self.letters.items() if letter == "<")
        held = ids == self.image_token_id
        begins = held & ~torch.cat([held.new_zeros(1), held[:-1]])
        return int(begins[: (ids == start).nonzero()[row.first_picture + index]].sum())

    def tile_of(self, row: BatchRow, grid: Shape) -> Size:
        return grid[1] * self.token_size[0], grid[0] * self.token_size[1]
