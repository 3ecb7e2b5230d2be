"""Llama 3.2 Vision: pictures are seen through cross-attention, in layers of their own; no column of the rest is visual.

One `<|image|>` in the text stands for each picture. Its features are no tokens of the sequence but the keys of the
cross-attention layers: for every picture and tile a class token and the patches, padding tiles included, which the rows
do not see. So the text has no grid, and the `image` tokens of a prompt are these stand-ins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lmm_lens.errors import PromptError
from lmm_lens.prompts.spans import Span

from .base import Adapter
from .row import BatchRow, TokenRun


class Mllama(Adapter):
    """Llama 3.2 Vision 11B and 90B."""

    family = "mllama"
    model_types = ("mllama",)

    def images(self, row: BatchRow, found: list[TokenRun]) -> list[Span]:
        slots = [position for run in found for position in run]
        if row.pictures is not None and len(slots) != len(row.pictures):
            raise PromptError(
                f"the text has {len(slots)} image tokens but {len(row.pictures)} pictures were given\n"
                "  expected one a picture"
            )
        return [Span("image", (position,), index) for index, position in enumerate(slots)]

    def n_given(self, kind: str, inputs: Mapping[str, Any]) -> dict[str, int]:
        """Shape 0 pads rows that have fewer pictures."""
        shapes = inputs.get("aspect_ratio_ids")
        return {"aspect_ratio_ids": int((shapes > 0).sum())} if kind == "image" and isinstance(shapes, Tensor) else {}

    def cross_keys(self, inputs: Mapping[str, Any]) -> Tensor | None:
        """Which keys of the cross-attention layers are of a picture's tiles, not padding: Bool[batch, key]."""
        shown, shapes = inputs.get("aspect_ratio_mask"), inputs.get("aspect_ratio_ids")
        if shown is None or shapes is None:  # precomputed cross_attention_states
            return None
        tiles = (shown != 0) & (shapes > 0)[..., None]  # shape 0 pads rows that have fewer pictures
        vision = self.config.vision_config
        n_keys = (vision.image_size // vision.patch_size) ** 2 + 1  # the class token and the patches of a tile
        return torch.repeat_interleave(tiles.flatten(1).cpu(), n_keys, dim=1)
