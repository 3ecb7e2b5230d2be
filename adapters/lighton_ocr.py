"""LightOnOCR: one run a picture, which keeps its shape; `image_sizes` tells its rows and columns."""

from __future__ import annotations

from lmm_lens.errors import PromptError
from lmm_lens.prompts.spans import Span

from .pixtral import Pixtral, seen
from .row import BatchRow, TokenRun


class LightOnOcr(Pixtral):
    """LightOnOCR: Pixtral's tower with patches merged, and no token between rows."""

    family = "lighton_ocr"
    model_types = ("lighton_ocr",)

    def images(self, row: BatchRow, found: list[TokenRun]) -> list[Span]:
        if "mm_encoder_outputs" in row.inputs and "image_sizes" not in row.inputs:
            return super().images(row, found)
        spans: list[Span] = []
        for index, size in enumerate(self.sizes(row)):
            if not found:
                break
            grid = (size[0] // self.edge, size[1] // self.edge)
            n_tokens, run = grid[0] * grid[1], found[0]
            if len(run) < n_tokens:
                raise PromptError(
                    f"picture {index}, processed to {size[1]} x {size[0]} pixels, makes {grid[0]} x {grid[1]} image "
                    f"tokens\n  the text has a run of {len(run)} instead\n"
                    "  process text and pictures with the model's own processor"
                )
            spans.append(Span("image", run[:n_tokens], index, 0, grid, seen(row.size(index), size, grid, self.edge)))
            found = [run[n_tokens:], *found[1:]] if len(run) > n_tokens else found[1:]
        if found:
            raise PromptError(
                f"{sum(map(len, found))} image tokens from position {found[0][0]} on belong to no picture\n"
                "  process text and pictures with the model's own processor"
            )
        return spans
