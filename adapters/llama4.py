"""Llama 4: crops with separators between columns and after rows, then the whole picture behind `<|image|>`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import floor
from typing import Any

import torch

from .tiles import Shape, Size, Tiled


class Llama4(Tiled):
    """The picture keeps its proportions and lies in the upper left corner of its crops, the rest is padding."""

    family = "llama4"
    model_types = ("llama4",)
    picture = "<(?:(?:i+,)*i+;)*Gi+>"

    @property
    def tags(self) -> Mapping[str, Sequence[str]]:
        own = self.processor
        ends = {"<": [own.start_of_img_token], ">": [own.end_of_img_token], "G": [own.fake_image_token]}
        return {**ends, ",": [own.tile_token], ";": [own.tile_global_token]}

    @property
    def shuffle(self) -> int:
        return round(1 / float(self.config.vision_config.pixel_shuffle_ratio))

    def shape(self, letters: str, ids: Sequence[int], n_crops: int, size: Size | None) -> Shape | None:
        rows = letters.count(";")
        return rows, n_crops // rows

    def scaled(self, shape: Shape, tile: Size, size: Size) -> tuple[float, float]:
        # the processor's own arithmetic, in its own numbers: a canvas is of tensors, so that they are of 32 bits
        width: Any
        height: Any
        width, height = (torch.tensor(round(edge)) for edge in super().scaled(shape, tile, size))
        own = self.processor.image_processor
        if not own.resize_to_max_canvas:  # a picture smaller than a tile grows to it, and no further
            edge = own.size["height"]
            width, height = min(max(size[0], edge), width), min(max(size[1], edge), height)
        across, down = width / size[0], height / size[1]
        if across < down:
            return float(width), float(max(1, min(floor(size[1] * across), height)))
        return float(max(1, min(floor(size[0] * down), width))), float(height)
