"""Perception LM: one run a picture, the whole of it first, then its tiles row by row; no token stands between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .tiles import Shape, Size, Tiled

PATCH = 14  # of every published tower; a tower of timm does not say, its processor does


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
        edge = int(getattr(self.processor, "patch_size", None) or PATCH) * self.shuffle
        return edge, edge

    def shape(self, letters: str, ids: Sequence[int], n_crops: int, size: Size | None) -> Shape | None:
        own: Any = getattr(self.processor, "image_processor", None)
        if size is None or own is None:
            return None
        canvas = own._fit_image_to_canvas(*size, own.tile_size) or own._find_closest_aspect_ratio(*size, own.tile_size)
        return int(canvas[1]), int(canvas[0])
