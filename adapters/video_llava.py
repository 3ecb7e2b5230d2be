"""Video-LLaVA: a picture is one square of patches; a video is frames of a class token and a square each."""

from __future__ import annotations

from typing import Any

from lmm_lens.errors import PromptError
from lmm_lens.prompts.spans import Box, Span

from .frames import encoded, frame_regions, frame_spans
from .llava import Llava
from .row import BatchRow, TokenRun


class VideoLlava(Llava):
    """Video-LLaVA 7B."""

    family = "video_llava"
    takes_videos = True
    images_in = ("pixel_values_images",)
    videos_in = ("pixel_values_videos",)
    model_types = ("video_llava",)

    def arranged(self, pictures: list[list[Any]]) -> Any:
        thin = [picture.size for row in pictures for picture in row if picture.height in (1, 3)]
        if thin:
            raise PromptError(
                f"Video-LLaVA's processor would take the 1 or 3 rows of pixels of {thin} for colour channels\n"
                "  make these pictures higher"
            )
        return super().arranged(pictures)

    def videos(self, row: BatchRow, found: list[TokenRun]) -> list[Span]:
        if "pixel_values_videos" not in row.inputs and encoded(row, "video") is None:
            return super().videos(row, found)
        seen = self.side * self.cell
        regions = frame_regions(row, getattr(self.processor, "video_processor", None), seen / self.edge)
        return frame_spans(row, found, self.side, regions, Box(0, 0, seen, seen), lead=1)  # kept for videos, always
