"""Gemma 4: pictures keep their shape. The places of the patches come with the pixels; squares of patches are pooled.

A begin token, the picture row by row, an end token. A video is one such block a frame, with the time before each.
"""

from __future__ import annotations

from typing import Any

from lmm_lens.errors import PromptError
from lmm_lens.prompts.spans import Box, Span

from .base import Adapter
from .row import BatchRow, TokenRun


class Gemma4(Adapter):
    """Gemma 4 with pictures and videos."""

    family = "gemma4"
    takes_videos = True
    model_types = ("gemma4",)
    has_grid = True
    images_in = ("image_position_ids", "pixel_values")
    videos_in = ("num_frames_per_video",)

    @property
    def pooled(self) -> int:
        """Patches along one side of what one token sees."""
        return int(self.config.vision_config.pooling_kernel_size)

    @property
    def edge(self) -> int:
        """Pixels along one side of what one token sees."""
        vision = self.config.vision_config
        return int(vision.pooling_kernel_size) * int(vision.patch_size)

    @property
    def marker_ids(self) -> frozenset[int]:
        return frozenset({self.config.boi_token_id, self.config.eoi_token_id})

    def images(self, row: BatchRow, found: list[TokenRun]) -> list[Span]:
        grids = self._grids(row, "image_position_ids", row.first_picture, len(found))
        return [
            Span("image", run, index, 0, grid, self._region(row.size(index), grid))
            for index, (run, grid) in enumerate(zip(found, grids, strict=True))
        ]

    def videos(self, row: BatchRow, found: list[TokenRun]) -> list[Span]:
        n_frames: Any = row.inputs.get("num_frames_per_video")
        if n_frames is None:
            raise PromptError(
                "the frames of the videos are not known: expected num_frames_per_video, [video]\n"
                f"  given {sorted(row.inputs)}\n  the model's own processor returns it"
            )
        counts = [int(n) for n in n_frames]
        grids = self._grids(row, "video_position_ids", sum(counts[: row.first_clip]), len(found))
        frames = [(video, i) for video, n in enumerate(counts[row.first_clip :]) for i in range(n)]
        return [
            Span("video", run, None, 0, grid, self._region(row.clip_size(video), grid), video, frame)
            for run, grid, (video, frame) in zip(found, grids, frames, strict=False)
        ]

    def _grids(self, row: BatchRow, name: str, first: int, count: int) -> list[tuple[int, int]]:
        """Rows and columns of tokens, from the largest place of a patch."""
        places: Any = row.inputs.get(name)
        if places is None or len(places) < first + count:
            raise PromptError(
                f"the rows and columns of the pictures are not known: expected {name}, [picture, patch, 2], with "
                f"{first + count} entries\n  given {None if places is None else tuple(places.shape)}\n"
                "  the model's own processor returns it"
            )
        largest = places[first : first + count].amax(1) + 1
        return [(int(rows) // self.pooled, int(columns) // self.pooled) for columns, rows in largest]

    def _region(self, size: tuple[int, int] | None, grid: tuple[int, int]) -> Box:
        return Box(0, 0, *(size or (grid[1] * self.edge, grid[0] * self.edge)))  # resized to whole tokens, not cropped
