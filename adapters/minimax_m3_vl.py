"""MiniMax M3: the Qwen layout; each grid of a video has its own start and end, behind its time in brackets."""

import re

from .grid_thw import GridThw


class MiniMaxM3VL(GridThw):
    """MiniMax M3 with pictures and videos."""

    family = "minimax_m3_vl"
    model_types = ("minimax_m3_vl",)
    openers = ("]<]start of image[>[",)
    closers = ("]<]end of image[>[",)
    stamp = re.compile(r"\]<\]\d+\.\d seconds\[>\[")
