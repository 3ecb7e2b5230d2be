"""Qwen3-VL: each grid of a video, two frames of it, has its own start and end, after a time stamp in words."""

import re

from .grid_thw import GridThw


class Qwen3VL(GridThw):
    """Qwen3-VL, dense and mixture of experts."""

    family = "qwen3_vl"
    model_types = ("qwen3_vl", "qwen3_vl_moe")
    stamp = re.compile(r"<\d+\.\d seconds>")
