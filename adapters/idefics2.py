"""Idefics 2: a resampler turns every picture, whatever its size, into a fixed number of latents; there is no grid.

A latent looks at the whole picture, so that no pixel belongs to a token. Each run of latents stands between markers.
With image splitting a picture makes five runs: its four quarters (tiles 1 to 4), then the whole (tile 0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lmm_lens.errors import PromptError
from lmm_lens.prompts.spans import Span

from .base import Adapter
from .row import BatchRow, TokenRun
from .tiles import n_real

TILES = (1, 2, 3, 4, 0)


class Idefics2(Adapter):
    """Idefics 2, with or without image splitting."""

    family = "idefics2"
    model_types = ("idefics2",)

    @property
    def marker_ids(self) -> frozenset[int]:
        return self.ids_of(getattr(self.processor, "fake_image_token", ""))

    def n_given(self, kind: str, inputs: Mapping[str, Any]) -> dict[str, int]:
        """Rows with fewer pictures are filled up with zeros."""
        pixels = inputs.get("pixel_values")
        if kind != "image" or not isinstance(pixels, Tensor):
            return {}
        return {"pixel_values": n_real(pixels.flatten(0, 1).flatten(1))}

    def n_found(self, kind: str, spans: Sequence[Sequence[Span]]) -> int:
        """Every quarter is an entry of its own."""
        return sum(span.kind == kind for row in spans for span in row)

    def images(self, row: BatchRow, found: list[TokenRun]) -> list[Span]:
        latents = self.config.perceiver_config.resampler_n_latents
        tiles = (
            TILES if getattr(getattr(self.processor, "image_processor", None), "do_image_splitting", False) else (0,)
        )
        uneven = [len(run) for run in found if len(run) != latents]
        if uneven or len(found) % len(tiles) or len(found) != len(tiles) * len(row.pictures or found[:: len(tiles)]):
            raise PromptError(
                f"expected runs of {latents} image tokens, {len(tiles)} a picture\n"
                f"  given runs of {[len(run) for run in found]} tokens"
                f"{'' if row.pictures is None else f' for {len(row.pictures)} pictures'}\n"
                "  process text and pictures with the model's own processor"
            )
        if self.processor is None and len(found) > 1:  # quarters or pictures?
            return [Span("image", run) for run in found]
        return [Span("image", run, i // len(tiles), tiles[i % len(tiles)]) for i, run in enumerate(found)]
