"""Nemotron Omni: one run a picture between begin and end; it keeps its shape, `image_grid_hw` counts its patches."""

from __future__ import annotations

from typing import Any

from lmm_lens.errors import PromptError
from lmm_lens.prompts.spans import Box, Span

from .base import Adapter
from .row import BatchRow, TokenRun


class NemotronHOmni(Adapter):
    """Nemotron H Omni with pictures."""

    family = "nemotron_h_omni"
    model_types = ("nemotron_h_omni",)
    has_grid = True
    images_in = ("image_grid_hw",)

    has_bridge = False  # it does not say which of its parts is the output embedding

    @property
    def video_slot(self) -> str | None:
        return None

    @property
    def marker_ids(self) -> frozenset[int]:
        return self.ids_of(*(getattr(self.processor, name, "") for name in ("image_start_token", "image_end_token")))

    @property
    def merge(self) -> int:
        """Patches along one side of a token."""
        return round(1 / float(self.config.downsample_ratio))

    def images(self, row: BatchRow, found: list[TokenRun]) -> list[Span]:
        shapes: Any = row.inputs.get("image_grid_hw")
        if shapes is None:
            return super().images(row, found)
        edge = int(self.config.vision_config.patch_size)
        spans: list[Span] = []
        for index, run in enumerate(found):
            entry = row.first_picture + index
            height, width = (int(n) for n in shapes[entry]) if entry < len(shapes) else (0, 0)
            grid = (height // self.merge, width // self.merge)
            if grid[0] * grid[1] != len(run):
                raise PromptError(
                    f"a run of {len(run)} image tokens at position {run[0]} belongs to no picture of image_grid_hw: "
                    f"picture {index} of the row makes {grid[0]} x {grid[1]}\n"
                    "  process text and pictures together, with the model's own processor"
                )
            region = Box(0, 0, *(row.size(index) or (width * edge, height * edge)))
            spans.append(Span("image", run, index, 0, grid, region))
        return spans
