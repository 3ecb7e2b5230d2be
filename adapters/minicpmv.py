"""MiniCPM-V 4.6 and later: the whole picture first, then its slices, a line break after each row of them.

`target_sizes` tells how many patches each of them has; it is resized to them, its shape nearly kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lmm_lens.errors import PromptError
from lmm_lens.prompts.spans import Span, runs

from .row import BatchRow, TokenRun
from .tiles import Shape, Size, Tiled


class MiniCPMV(Tiled):
    """MiniCPM-V 4.6 and 4.7, and MiniCPM-OCR. Its videos are of another token, and not laid out here."""

    family = "minicpmv"
    model_types = ("minicpmv4_6", "minicpmv4_7", "minicpm_ocr")
    picture = r"(?:\(\.{1,4}\))?<i+>(?:\[i+\](?:\.?\[i+\])*)?"
    thumbnail_first = True

    @property
    def video_slot(self) -> str | None:
        return None

    @property
    def tags(self) -> Mapping[str, Sequence[str]]:
        own = self.processor
        ends = {"<": [own.image_start_token], ">": [own.image_end_token]}
        numbers = {"(": [own.image_id_start_token], ")": [own.image_id_end_token]}
        return {**ends, **numbers, "[": [own.slice_start_token], "]": [own.slice_end_token]}

    @property
    def shuffle(self) -> int:
        """Patches merged along an edge: twice by two, or once where the tower's own merging is left out."""
        return 2 if getattr(self.config, "downsample_mode", "16x") == "4x" else 4

    def shape(self, letters: str, ids: Sequence[int], n_crops: int, size: Size | None) -> Shape | None:
        rows = letters.partition(">")[2].count(".") + 1
        return rows, n_crops // rows

    def n_tokens(self, inputs: Mapping[str, Any]) -> int | None:
        return sum(h * w for h, w in self._all_grids(inputs)) if "pixel_values" in inputs else None

    def _all_grids(self, inputs: Mapping[str, Any]) -> list[Shape]:
        sizes = inputs.get("target_sizes")
        if sizes is None:
            raise PromptError(
                f"target_sizes is missing, which tells how many patches each slice has; given {sorted(inputs)}\n"
                "  give everything that the processor returns"
            )
        return [(height // self.shuffle, width // self.shuffle) for height, width in sizes.tolist()]

    def images(self, row: BatchRow, found: list[TokenRun]) -> list[Span]:
        if "target_sizes" not in row.inputs:  # the tower ran before, its input is gone
            return [Span("image", run) for run in found]
        return super().images(row, found)

    def grids(self, row: BatchRow, index: int, held: list[int]) -> list[Shape]:
        tiles = runs(held)
        before = self._tiles_before(row, held[0])
        grids = self._all_grids(row.inputs)[before : before + len(tiles)]
        if [len(tile) for tile in tiles] != [rows * columns for rows, columns in grids]:
            raise PromptError(
                f"tiles of {[len(tile) for tile in tiles]} tokens where target_sizes makes grids of {grids}\n"
                "  process text and pictures with the model's own processor"
            )
        return grids

    def _tiles_before(self, row: BatchRow, position: int) -> int:
        """How many tiles the batch has before a position of this row: a run of placeholders each."""
        ids = row.inputs["input_ids"]
        own = torch.tensor(row.ids, device=ids.device)
        which = next(n for n, each in enumerate(ids) if torch.equal(each, own))
        held = torch.cat([ids[:which].flatten(), own[:position]]).eq(int(self.image_token_id or 0))
        starts = held & ~torch.cat([held.new_zeros(1), held[:-1]])
        return int(starts.sum())

    def tile_of(self, row: BatchRow, grid: Shape) -> Size:
        return grid[1] * self.token_size[0], grid[0] * self.token_size[1]
