"""Qwen2.5-VL: Qwen2-VL's layout with windows of attention in the tower, which change no token's place."""

from typing import ClassVar

from .qwen2_vl import Qwen2VL


class Qwen25VL(Qwen2VL):
    """Qwen2.5-VL 3B to 72B, and those with its tower: EXAONE 4.5, HyperCLOVA X SEED Vision."""

    family = "qwen2_5_vl"
    model_types: ClassVar[tuple[str, ...]] = ("qwen2_5_vl", "exaone4_5", "hyperclovax_vision_v2")
