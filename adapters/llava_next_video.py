"""LLaVA-NeXT-Video: pictures as LLaVA-NeXT, and videos whose frames are pooled by the stride of the resampler."""

from __future__ import annotations

from lmm_lens.prompts.spans import Box, Span

from .anyres import AnyRes
from .frames import encoded, frame_regions, frame_spans
from .row import BatchRow, TokenRun


class LlavaNextVideo(AnyRes):
    """LLaVA-NeXT-Video 7B and 34B."""

    family = "llava_next_video"
    takes_videos = True
    images_in = ("image_sizes", "pixel_values")
    videos_in = ("pixel_values_videos",)
    model_types = ("llava_next_video",)

    def videos(self, row: BatchRow, found: list[TokenRun]) -> list[Span]:
        if "pixel_values_videos" not in row.inputs and encoded(row, "video") is None:
            return super().videos(row, found)
        stride, tower = self.config.spatial_pool_stride, self.config.vision_config
        side = self.side // stride  # patches left over at the edge are dropped
        seen = side * stride * tower.patch_size
        regions = frame_regions(row, getattr(self.processor, "video_processor", None), seen / tower.image_size)
        return frame_spans(row, found, side, regions, Box(0, 0, seen, seen))
