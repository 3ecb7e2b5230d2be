"""Qwen2-VL: a picture is one run of tokens between start and end, a video one run of all its frames."""

from typing import ClassVar

from .grid_thw import GridThw


class Qwen2VL(GridThw):
    """Qwen2-VL 2B, 7B and 72B."""

    family = "qwen2_vl"
    model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl",)
