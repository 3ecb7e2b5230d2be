"""Granite Docling: each crop behind a `<row_r_col_c>` tag, a line break after each row, after several the whole.

With the processor's fine route a crop has four times as many tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .idefics3 import Idefics3


class GraniteDocling(Idefics3):
    """Granite Docling 2; the first one is an Idefics 3."""

    family = "granite_docling"
    model_types = ("granite_docling",)
    picture = r"<Ti+(?:\.{0,2}<Ti+)*(?:\.{0,3}<Gi+<)?"

    @property
    def tags(self) -> Mapping[str, Sequence[str]]:
        crops = self.tokens_like(r"<row_\d+_col_\d+>")
        return {"<": [self.processor.fake_image_token], "T": crops, "G": [self.processor.global_image_tag]}

    @property
    def shuffle(self) -> int:
        return int(self.config.vision_config.scale_factor)

    def has_thumbnail(self, letters: str, n_tiles: int) -> bool:
        return "G" in letters

    def tile_grid(self, inputs: Mapping[str, Any]) -> tuple[int, int]:
        rows, columns = super().tile_grid(inputs)
        return (rows * 2, columns * 2) if inputs.get("tile_fine_mask") is not None else (rows, columns)
