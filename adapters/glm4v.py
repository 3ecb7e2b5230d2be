"""GLM-4.1V and later: frames of a video are written with the token of pictures, between a video's begin and end.

Each grid of a video, two frames of it, has its own begin and end, then its time stamp in words.
"""

from __future__ import annotations

from typing import ClassVar

from lmm_lens.prompts.spans import Span, runs

from .grid_thw import GridThw
from .row import BatchRow, TokenRun


class Glm4v(GridThw):
    """GLM-4.1V, GLM-4.5V (mixture of experts), GLM-4.6V, GLM-OCR and GLM-GA."""

    family = "glm4v"
    model_types: ClassVar[tuple[str, ...]] = ("glm4v", "glm4v_moe", "glm46v", "glm_ocr", "glmga")
    openers = ("<|begin_of_image|>", "<|begin_of_video|>")
    closers = ("<|end_of_image|>", "<|end_of_video|>")
    opener_settings = ("image_start_token_id", "video_start_token_id")
    closer_settings = ("image_end_token_id", "video_end_token_id")

    def images(self, row: BatchRow, found: list[TokenRun]) -> list[Span]:
        begin = self.named(("<|begin_of_video|>",), ("video_start_token_id",))
        end = self.named(("<|end_of_video|>",), ("video_end_token_id",))
        depth, inside = 0, []  # as the processor tells the two apart, and the model with it
        for token in row.ids:
            depth += (token in begin) - (token in end)
            inside.append(depth > 0)
        pictures = [position for run in found for position in run if not inside[position]]
        frames = [position for run in found for position in run if inside[position]]
        return super().images(row, runs(pictures)) + self.videos(row, runs(frames))
