"""Qwen3.5: Qwen3-VL's layout and processor; most decoder layers are linear attention, without heads that attend."""

from .qwen3_vl import Qwen3VL


class Qwen35(Qwen3VL):
    """Qwen3.5, dense and mixture of experts, and the experimental Qwen 4."""

    family = "qwen3_5"
    model_types = ("qwen3_5", "qwen3_5_moe", "qwen4_exp")
