"""Ovis 2: the whole picture first, then its crops with separators between columns and rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

from .tiles import Shape, Size, Tiled


class Ovis2(Tiled):
    """The config names the separators, so tensors suffice; the model puts vectors of its own in their place."""

    family = "ovis2"
    model_types = ("ovis2",)
    picture = "<i+G(?:i+[,;])*(?:i+)?>"
    thumbnail_first = True

    @cached_property
    def letters(self) -> dict[int, str]:
        separators = zip(self.config.visual_indicator_token_ids, self.tags, strict=True)
        return {**dict(separators), self.config.image_token_id: "i"}

    @property
    def tags(self) -> Mapping[str, Sequence[str]]:
        names = {"<": "START", "G": "GRID", ",": "COL", ";": "ROW", ">": "END"}  # in the order of the config
        return {letter: [f"<IMG_{name}>"] for letter, name in names.items()}

    @property
    def shuffle(self) -> int:
        return int(self.config.vision_config.hidden_stride)

    def shape(self, letters: str, ids: Sequence[int], n_crops: int, size: Size | None) -> Shape | None:
        rows = letters.count(";") + 1
        return rows, n_crops // rows
