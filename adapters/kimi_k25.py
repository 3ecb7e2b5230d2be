"""Kimi K2.5: the Qwen layout between `<|media_begin|>image<|media_content|>` and `<|media_end|>`.

A picture keeps its shape and is filled up to whole tokens on the right and at the bottom. A video is cut into chunks
of a few frames, whose features the tower averages into one grid.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from lmm_lens.prompts.spans import Box

from .grid_thw import GridThw, Kind, PatchGrid
from .row import BatchRow


class KimiK25(GridThw):
    """Kimi K2.5; its videos, an entry of `video_grid_thw` for each chunk, are not told apart here."""

    family = "kimi_k25"
    model_types = ("kimi_k25",)
    takes_videos = False
    openers = ("<|media_begin|>", "<|media_content|>")
    closers = ("<|media_end|>",)

    def cells(self, kind: Kind, inputs: Mapping[str, Any], entry: int) -> tuple[PatchGrid, list[Sequence[int]]]:
        grid, frames = super().cells(kind, inputs, entry)
        return grid, frames[:1]

    def merge(self, kind: Kind, inputs: Mapping[str, Any], entry: int) -> tuple[int, int]:
        return 1, self.config.vision_config.merge_kernel_size[0]

    def region(self, kind: Kind, row: BatchRow, index: int, entry: int) -> Box:
        whole, size = super().region(kind, row, index, entry), row.size(index) if kind == "image" else None
        own = getattr(self.processor, "image_processor", None)
        if size is None or own is None:
            return whole
        resize = sys.modules[type(own).__module__].navit_resize  # the processor's own arithmetic
        limits = own.patch_size, own.merge_size, own.max_patches, own.size["max_height"]
        (height, width), (padded_height, padded_width) = resize(size[1], size[0], *limits)
        return Box(0, 0, padded_width * size[0] / width, padded_height * size[1] / height)
