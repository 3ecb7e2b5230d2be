"""GLM-5: GLM-4.6V's layout; a picture keeps its shape and is filled up to whole tokens on the right and at the bottom.

Most decoder layers are linear attention, and several residual streams go through all of them.
"""

from __future__ import annotations

from math import floor
from typing import Any

from lmm_lens.prompts.spans import Box

from .glm4v import Glm4v
from .grid_thw import Kind
from .row import BatchRow


class Glm5Next(Glm4v):
    """GLM-5 with pictures and videos. Its residual streams are refused where one is asked for."""

    family = "glm5_next"
    model_types = ("glm5_next",)
    has_bridge = False  # a bridge has one residual stream, and takes linear attention for attention

    def region(self, kind: Kind, row: BatchRow, index: int, entry: int) -> Box:
        given = row.size(index) if kind == "image" else row.clip_size(index)
        own: Any = getattr(self.processor, f"{kind}_processor", None)
        if given is None or own is None:
            return super().region(kind, row, index, entry)
        _, *patches = (int(n) for n in row.inputs[f"{kind}_grid_thw"][entry])
        height, width = (n * int(own.patch_size) for n in patches)
        # the processor's own arithmetic: it enlarges only what would have too few tokens
        n_frames = row.clips[index].n_frames if kind == "video" and row.clips else own.temporal_patch_size
        fewest = own.min_image_tokens * own.temporal_patch_size * (own.patch_size * own.merge_size) ** 2
        scale = min(height / given[1], width / given[0])
        scale = min(1.0, scale) if n_frames * given[0] * given[1] >= fewest else scale
        content = [max(1, min(whole, floor(side * scale))) for whole, side in ((width, given[0]), (height, given[1]))]
        return Box(0, 0, width * given[0] / content[0], height * given[1] / content[1])
