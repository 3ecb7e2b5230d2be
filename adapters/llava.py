"""LLaVA 1.5: every picture is one square run of patch tokens, in place of one `<image>`."""

from __future__ import annotations

from typing import Any

from .base import Adapter
from .pixtral import Pixtral
from .square import Square


class Llava(Square):
    """LLaVA-1.5 on any decoder: LLaMA-2, LLaMA-3, Phi-3, Mistral."""

    family = "llava"
    model_types = ("llava",)

    @classmethod
    def variant(cls, model: Any) -> type[Adapter]:
        """A Pixtral tower keeps the shape of every picture: another layout under the same model type."""
        return Pixtral if model.config.vision_config.model_type == "pixtral" else cls

    @property
    def lead(self) -> int:
        """The class token, where it is kept."""
        has_one = self.config.vision_config.model_type == "clip_vision_model"
        return int(has_one and getattr(self.config, "vision_feature_select_strategy", "default") == "full")
