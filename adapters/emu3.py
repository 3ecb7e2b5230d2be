"""Emu 3: a token of a codebook for each square of a picture, which keeps its shape; an end after each row.

The ends of rows carry the image token too. The encoder's convolutions and its attention look beyond a square: a token's
box is where it lies.
"""

from __future__ import annotations

from lmm_lens.errors import PromptError
from lmm_lens.prompts.spans import Box, Span

from .base import Adapter
from .pixtral import Pixtral
from .row import BatchRow, TokenRun


class Emu3(Adapter):
    """Emu 3, when it reads pictures."""

    family = "emu3"
    model_types = ("emu3",)
    has_tower_heads = False
    has_grid = True
    images_in = ("image_sizes",)

    @property
    def marker_ids(self) -> frozenset[int]:
        names = ("image_start_token", "image_end_token", "fake_token_around_image", "eof_token")
        return self.ids_of(*(getattr(self.processor, name, "") for name in names))

    @property
    def edge(self) -> int:
        """Pixels along one side of a token's square."""
        return int(2 ** (len(self.config.vq_config.channel_multiplier) - 1))

    def images(self, row: BatchRow, found: list[TokenRun]) -> list[Span]:
        if "image_sizes" not in row.inputs:
            return super().images(row, found)
        spans: list[Span] = []
        sizes = Pixtral.sizes(row)
        for index, run in enumerate(found):
            height, width = sizes[index] if index < len(sizes) else (0, 0)
            rows, columns = height // self.edge, width // self.edge
            if len(run) != rows * (columns + 1):
                raise PromptError(
                    f"a run of {len(run)} image tokens at position {run[0]} belongs to no picture of image_sizes: "
                    f"picture {index} of the row makes {rows} rows of {columns} and an end\n"
                    "  process text and pictures together, with the model's own processor"
                )
            patches = tuple(position for at, position in enumerate(run) if (at + 1) % (columns + 1))
            ends = tuple(position for at, position in enumerate(run) if not (at + 1) % (columns + 1))
            region = Box(0, 0, *(row.size(index) or (columns * self.edge, rows * self.edge)))
            spans.append(Span("image", patches, index, 0, (rows, columns), region))
            spans.append(Span("marker", ends, index))
        return spans
