"""PaliGemma: the square of the picture, the beginning-of-sequence token, then the text; all of it attends both ways."""

from __future__ import annotations

from typing import Any

from lmm_lens.errors import PromptError

from .square import Square


class PaliGemma(Square):
    """PaliGemma 1 and 2."""

    family = "paligemma"
    model_types = ("paligemma",)

    def arranged(self, pictures: list[list[Any]]) -> Any:
        without = [row for row, given in enumerate(pictures) if not given]
        if without:  # its processor would put the beginning-of-sequence token after the sixth letter
            raise PromptError(
                f"PaliGemma's processor takes no row without a picture, and rows {without} have none\n"
                "  give every row a picture, or ask the others in a prompt of their own with lens.prompt(inputs=...)"
            )
        return pictures
