"""VideoLLaMA 3: the Qwen layout without markers; of a video's later frames only patches that changed have tokens.

What is left of a frame are stretches of its rows, each a span of its own. Pixels that have no token in a frame looked
alike in the frame before.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .grid_thw import GridThw, Kind, PatchGrid


class VideoLlama3(GridThw):
    """VideoLLaMA 3, its picture and its video models."""

    family = "video_llama_3"
    model_types = ("video_llama_3",)
    openers = closers = opener_settings = closer_settings = ()
    stamp = re.compile(r"Time \d+\.\ds:")

    def merge(self, kind: Kind, inputs: Mapping[str, Any], entry: int) -> tuple[int, int]:
        return 1, int(inputs[f"{kind}_merge_sizes"][entry])

    def cells(self, kind: Kind, inputs: Mapping[str, Any], entry: int) -> tuple[PatchGrid, list[Sequence[int]]]:
        grid, frames = super().cells(kind, inputs, entry)
        kept = inputs.get("video_compression_mask")
        if kind == "image" or kept is None:
            return grid, frames
        before = (super(VideoLlama3, self).cells(kind, inputs, earlier) for earlier in range(entry))
        start = sum(rows * columns * len(every) for (rows, columns), every in before)
        own = kept[start : start + grid[0] * grid[1] * len(frames)].view(len(frames), -1)
        return grid, [frame.nonzero().flatten().tolist() for frame in own]

    def n_tokens(self, kind: Kind, inputs: Mapping[str, Any], n_features: list[int]) -> list[int]:
        kept = inputs.get("video_compression_mask")
        return n_features if kind == "image" or kept is None else [int(own.sum()) for own in kept.split(n_features)]
