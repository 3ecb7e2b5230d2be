"""MiniMax M3: the Qwen layout; pictures only, since its processor takes no video whose frames are no whole tokens."""

from .grid_thw import GridThw


class MiniMaxM3VL(GridThw):
    """MiniMax M3 with pictures."""

    family = "minimax_m3_vl"
    model_types = ("minimax_m3_vl",)
    takes_videos = False
    openers = ("]<]start of image[>[",)
    closers = ("]<]end of image[>[",)
