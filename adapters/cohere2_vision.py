"""Command A Vision: crops row by row and the whole picture last, a line break after each tile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .aya_vision import AyaVision


class Cohere2Vision(AyaVision):
    """As in Aya Vision, only the size of the picture tells in how many rows its crops lie."""

    family = "cohere2_vision"
    model_types = ("cohere2_vision",)
    picture = "<(?:i+/)+>"

    @property
    def tags(self) -> Mapping[str, Sequence[str]]:
        own = self.processor
        return {"<": [own.boi_token], "/": [own.img_line_break_token], ">": [own.eoi_token]}
