"""PaddleOCR-VL: the Qwen layout, pictures only."""

from .grid_thw import GridThw


class PaddleOCRVL(GridThw):
    """PaddleOCR-VL 0.9B."""

    family = "paddleocr_vl"
    model_types = ("paddleocr_vl",)
    takes_videos = False
    openers = ("<|IMAGE_START|>",)
    closers = ("<|IMAGE_END|>",)
