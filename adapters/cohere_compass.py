"""Cohere Compass: Qwen3-VL's layout, in tokens of its own."""

from .qwen3_vl import Qwen3VL


class CohereCompass(Qwen3VL):
    """Cohere Compass."""

    family = "cohere_compass"
    model_types = ("cohere_compass",)
    openers = ("<|VISION_START|>",)
    closers = ("<|VISION_END|>",)
