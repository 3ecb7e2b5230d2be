"""Hunyuan VL: the Qwen layout, but a begin, an end and a newline after each row carry the image token too."""

from __future__ import annotations

from functools import cached_property

from lmm_lens.errors import PromptError
from lmm_lens.prompts.spans import Span

from .grid_thw import GridThw
from .row import BatchRow, TokenRun


class HunYuanVL(GridThw):
    """HunyuanOCR and its kin; pictures only."""

    family = "hunyuan_vl"
    model_types = ("hunyuan_vl",)
    takes_videos = False
    opener_settings = ("im_start_id",)
    closer_settings = ("im_end_id",)

    @property
    def around(self) -> tuple[str, str]:
        """The tokens that its processor wants around each picture."""
        names = ("image_start_token", "image_end_token")
        start, end = (str(getattr(self.processor, name, "")) for name in names)
        return start, end

    @cached_property
    def opening(self) -> frozenset[int]:
        return self.named(self.around[:1], self.opener_settings)

    @cached_property
    def closing(self) -> frozenset[int]:
        return self.named(self.around[1:], self.closer_settings)

    def standing(self, kind: str) -> str:
        start, end = self.around
        return f"{start}{self.image_slot}{end}"

    def images(self, row: BatchRow, found: list[TokenRun]) -> list[Span]:
        """Each picture without its begin, end and newlines, which become markers."""
        grids = [
            self.cells("image", row.inputs, entry)[0] for entry in range(len(row.inputs.get("image_grid_thw", ())))
        ]
        if not grids:
            return super().images(row, found)
        patches: list[TokenRun] = []
        markers: list[Span] = []
        for rows, columns in grids[row.first_picture :]:
            if not found:
                break
            size, run = rows * (columns + 1) + 2, found[0]
            if len(run) < size:
                raise PromptError(
                    f"picture {len(patches)} of the row has {rows} rows of {columns} tokens and a newline, between a "
                    f"begin and an end, {size} tokens by image_grid_thw, but the text has {len(run)} there\n"
                    "  process text and pictures together, with the model's own processor"
                )
            found = [run[size:], *found[1:]] if len(run) > size else found[1:]
            inner = range(1, size - 1)
            patches.append(tuple(run[at] for at in inner if at % (columns + 1)))
            newlines = (run[at] for at in inner if not at % (columns + 1))
            markers.append(Span("marker", (run[0], *newlines, run[size - 1]), len(patches) - 1))
        return super().images(row, [*patches, *found]) + markers
