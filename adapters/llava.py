"""LLaVA 1.5: every picture is one square run of patch tokens, in place of one `<image>`."""

from __future__ import annotations

from lmm_lens.spans import Box, Span

from .base import Adapter, Row, Run, square_spans
from .picture import visible_region


class Llava(Adapter):
    """LLaVA-1.5 on any decoder: LLaMA-2, LLaMA-3, Phi-3, Mistral."""

    family = "llava"
    model_types = ("llava",)
    has_grid = True

    def images(self, row: Row, found: list[Run]) -> list[Span]:
        vision = self.config.vision_config
        if vision.model_type == "pixtral":  # rows of varying length between break tokens: the Pixtral layout
            return super().images(row, found)
        processor = getattr(self.processor, "image_processor", None)
        sizes = [picture.size for picture in row.pictures or ()]
        regions = [visible_region(processor, size) if processor is not None else None for size in sizes]
        whole = Box(0, 0, vision.image_size, vision.image_size)
        keeps_class_token = (
            vision.model_type == "clip_vision_model"
            and getattr(self.config, "vision_feature_select_strategy", "default") == "full"
        )
        side = vision.image_size // vision.patch_size
        return square_spans(found, side, regions, whole, lead=int(keeps_class_token))
