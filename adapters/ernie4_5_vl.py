"""Ernie 4.5 VL: the Qwen layout; two frames of a video become one grid after the tower, in the resampler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .grid_thw import GridThw, Kind


class Ernie45VL(GridThw):
    """Ernie 4.5 VL, mixture of experts."""

    family = "ernie4_5_vl"
    model_types = ("ernie4_5_vl_moe",)
    has_bridge = False  # its mixture of experts returns a tuple, which TransformerLens adds to the stream
    openers = ("<|IMAGE_START|>", "<|VIDEO_START|>")
    closers = ("<|IMAGE_END|>", "<|VIDEO_END|>")
    opener_settings = ("image_start_token_id", "video_start_token_id")
    closer_settings = ("image_end_token_id", "video_end_token_id")

    def merge(self, kind: Kind, inputs: Mapping[str, Any], entry: int) -> tuple[int, int]:
        vision = self.config.vision_config
        return vision.temporal_merge_size if kind == "video" else 1, vision.spatial_merge_size
