"""Muse Glimmer and Muse Spark: the Qwen layout; grids of a video, two frames each, stand between separators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .grid_thw import GridThw, Kind


class Muse(GridThw):
    """Muse Glimmer and Muse Spark, with pictures."""

    family = "muse"
    model_types = ("muse_glimmer", "muse_spark")
    takes_videos = False
    openers = ("<|image_start|>",)
    closers = ("<|image_end|>",)

    def merge(self, kind: Kind, inputs: Mapping[str, Any], entry: int) -> tuple[int, int]:
        return 1, self.config.vision_config.merge_size
