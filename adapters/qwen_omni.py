"""Qwen Omni's thinkers: the Qwen layout; a video is one run of all its frames."""

from __future__ import annotations

from .grid_thw import GridThw


class Qwen25Omni(GridThw):
    """The part of Qwen2.5-Omni and of Qwen3-Omni that sees, hears and answers in text."""

    family = "qwen_omni"
    model_types = ("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker")
    openers = ("<|vision_bos|>", "<|vision_start|>")
    closers = ("<|vision_eos|>", "<|vision_end|>")
