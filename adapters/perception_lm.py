"""Perception LM: one run a picture, the whole of it first, then its tiles row by row; no token stands between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .tiles import Shape, Size, Tiled


class PerceptionLM(Tiled):
    """Perception LM with pictures, all of a batch in as many tiles. Only a picture's size tells how its tiles lie."""

    family = "perception_lm"
    model_types = ("perception_lm",)
    picture = "i+"
    thumbnail_first = True

    @property
    def video_slot(self) -> str | None:
        return None

    @property
    def tags(self) -> Mapping[str, Sequence[str]]:
        return {}

    @property
    def shuffle(self) -> int:
        return int(self.config.projector_pooling_ratio)

    @property
    def token_size(self) -> Size:
        patch = int(self.processor.patch_size) if self.processor is not None else self._patch
        return patch * self.shuffle, patch * self.shuffle

    @property
    def _patch(self) -> int:
        """Pixels along a patch, of the tower's own settings where there is no processor."""
        vision = self.config.vision_config
        return int((getattr(vision, "model_args", None) or {}).get("patch_size") or getattr(vision, "patch_size", 14))

    def shape(self, letters: str, ids: Sequence[int], n_crops: int, size: Size | None) -> Shape | None:
        own: Any = getattr(self.processor, "image_processor", None)
        if size is None or own is None:
            return None
        canvas = own._fit_image_to_canvas(*size, own.tile_size) or own._find_closest_aspect_ratio(*size, own.tile_size)
        return int(canvas[1]), int(canvas[0])
