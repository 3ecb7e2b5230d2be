"""Qwen3-VL: each grid of a video, two frames of it, has its own start and end, after a time stamp in words."""

import re
from typing import ClassVar

from .grid_thw import GridThw


class Qwen3VL(GridThw):
    """Qwen3-VL, dense and mixture of experts, and those that took over its layout: Cosmos 3, LFM3-VL."""

    family = "qwen3_vl"
    model_types: ClassVar[tuple[str, ...]] = ("qwen3_vl", "qwen3_vl_moe", "cosmos3_omni", "lfm3_vl")
    stamp = re.compile(r"<\d+\.\d seconds>")
