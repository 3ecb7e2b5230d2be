"""GOT-OCR 2 and PP-Chart2Table: one square a picture, whose patches two convolutions shrink to a quarter.

The convolutions look a little beyond a token's box, and the tower's windows beyond both; the box is where a token lies.
"""

from __future__ import annotations

from typing import Any

from lmm_lens.errors import PromptError
from lmm_lens.prompts.spans import Span

from .row import BatchRow, TokenRun
from .square import Square


class GotOcr2(Square):
    """GOT-OCR 2, on whole pictures: with `crop_to_patches` every crop counts as a picture, and is refused."""

    family = "got_ocr2"
    model_types = ("got_ocr2", "pp_chart2table")
    has_tower_heads = False

    @property
    def cell(self) -> int:
        return int(self.config.vision_config.patch_size) * 4

    def arranged(self, pictures: list[list[Any]]) -> Any:
        return [picture for row in pictures for picture in row]  # a list of a row's would be its pages

    def images(self, row: BatchRow, found: list[TokenRun]) -> list[Span]:
        spans = super().images(row, found)
        if row.pictures is not None and len(spans) != len(row.pictures):
            raise PromptError(
                f"{len(spans)} squares of image tokens were found for {len(row.pictures)} pictures: they are crops\n"
                "  where a crop lies in its picture is not known for this family\n"
                "  process the pictures whole, without crop_to_patches and multi_page"
            )
        return spans
