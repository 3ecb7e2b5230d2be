"""LLaVA-OneVision: a single picture in up to 36 crops, several as one square each, videos with pooled frames.

Where a picture has too many patches, the grid of its crops is shrunk by bilinear interpolation, and so is every frame
of a video: a token then mixes the patches around its box.
"""

from __future__ import annotations

from typing import Any

from lmm_lens.prompts.spans import Box, Span

from .anyres import AnyRes
from .frames import encoded, frame_regions, frame_spans
from .row import BatchRow, TokenRun


class LlavaOnevision(AnyRes):
    """LLaVA-OneVision 0.5B, 7B and 72B."""

    family = "llava_onevision"
    takes_videos = True
    images_in = ("image_sizes", "pixel_values")
    videos_in = ("pixel_values_videos",)
    model_types = ("llava_onevision",)

    @property
    def packing(self) -> dict[str, Any]:
        return {"vision_aspect_ratio": self.config.vision_aspect_ratio}

    def is_cut(self, row: BatchRow, picture: int) -> bool:
        """A picture is cut only if it is alone in its row; rows without pictures do not count."""
        counts = row.inputs.get("batch_num_images")
        alone = [n == 1 for n in ([] if counts is None else counts.tolist()) for _ in range(n)]
        return alone[picture] if picture < len(alone) else True

    def videos(self, row: BatchRow, found: list[TokenRun]) -> list[Span]:
        if "pixel_values_videos" not in row.inputs and encoded(row, "video") is None:
            return super().videos(row, found)
        seen = self.side * self.config.vision_config.patch_size
        regions = frame_regions(row, getattr(self.processor, "video_processor", None), self.share)
        return frame_spans(row, found, -(-self.side // 2), regions, Box(0, 0, seen, seen), tail=1)
