"""Inkling 2: the Qwen layout; a picture keeps its size and is filled up to whole tokens on the right and at the bottom.

`image_grid_thw` counts tokens, not patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmm_lens.prompts.spans import Box

from .grid_thw import GridThw, Kind
from .row import BatchRow


class Inkling2(GridThw):
    """Inkling 2 with pictures."""

    family = "inkling2"
    model_types = ("inkling2",)
    takes_videos = False
    has_bridge = False  # its sinks take a share of every row, and a bridge's rows have to sum to one
    openers = closers = opener_settings = closer_settings = ()

    def merge(self, kind: Kind, inputs: Mapping[str, Any], entry: int) -> tuple[int, int]:
        return 1, 1

    def region(self, kind: Kind, row: BatchRow, index: int, entry: int) -> Box:
        vision = self.config.vision_config
        edge = vision.patch_size * vision.spatial_merge_size
        _, rows, columns = (int(n) for n in row.inputs[f"{kind}_grid_thw"][entry])
        return Box(0, 0, columns * edge, rows * edge)
