"""The HD layout of Phi-3-vision: a picture's crops as one grid, a separator, and the whole picture again.

Both grids have a learned vector after each row. Pictures may follow each other without a token between.
"""

from __future__ import annotations

from lmm_lens.errors import PromptError
from lmm_lens.prompts.spans import Box, Span

from .base import Adapter
from .row import BatchRow, TokenRun


class HD(Adapter):
    """What the families of this layout share; `image_sizes` holds the (height, width) of all crops together."""

    has_grid = True
    images_in = ("image_sizes",)
    crop = 336
    """Pixels along one edge of a crop."""
    cells = 12
    """Tokens along one edge of a crop."""

    def images(self, row: BatchRow, found: list[TokenRun]) -> list[Span]:
        rest = tuple(position for run in found for position in run)
        sizes = row.inputs["image_sizes"].tolist()[row.first_picture :]
        spans: list[Span] = []
        for index, (height, width) in enumerate(sizes):
            if not rest:  # the others are of further rows
                break
            down, across = height // self.crop * self.cells, width // self.crop * self.cells
            n_crops, n_whole = down * (across + 1), self.cells * (self.cells + 1)
            if len(rest) < n_crops + 1 + n_whole:
                raise PromptError(
                    f"{len(rest)} image tokens are left for a picture of {width} x {height} pixels, which takes "
                    f"{n_crops + 1 + n_whole}\n  process text and pictures with the model's own processor"
                )
            crops, separator, rest = rest[:n_crops], rest[n_crops], rest[n_crops + 1 :]
            whole, rest = rest[:n_whole], rest[n_whole:]
            # where the processor has put a picture that was given to it is not known
            region = Box(0, 0, width, height) if row.pictures is None else None
            for tile, part, columns in ((0, whole, self.cells), (1, crops, across)):
                patches = tuple(position for i, position in enumerate(part) if (i + 1) % (columns + 1))
                grid = (len(patches) // columns, columns) if region else None
                spans += [Span("image", patches, index, tile, grid, region)]
                spans += [Span("marker", part[columns :: columns + 1], index, tile)]
            spans.append(Span("marker", (separator,), index, 1))
        if rest:
            raise PromptError(
                f"{len(rest)} image tokens are left after {len(sizes)} pictures\n"
                "  process text and pictures with the model's own processor"
            )
        return spans
