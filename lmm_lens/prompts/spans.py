"""Where an image lies in the token sequence, and where each token lies in the image.

A `Span` is one run of visual tokens of one batch row. Where the family's layout is known it carries a
grid of patches and the region of the picture that this grid covers, and then maps pixels to tokens and
back. All coordinates are pixels of the picture as the user gave it, x to the right and y down; where only
processed tensors were given, they are pixels of the processed picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from ..errors import PromptError


class Box(NamedTuple):
    """A rectangle in pixels: left, top, right, bottom; right and bottom are exclusive.

    Attributes:
        x0, y0: the left and the top edge.
        x1, y1: the right and the bottom edge.
    """

    x0: float
    y0: float
    x1: float
    y1: float

    def overlaps(self, other: Box) -> bool:
        """Whether the two share a positive area; touching edges do not count."""
        return min(self.x1, other.x1) > max(self.x0, other.x0) and min(self.y1, other.y1) > max(self.y0, other.y0)


@dataclass(frozen=True)
class Span:
    """A run of visual tokens (or of markers between them) in one batch row.

    Attributes:
        kind: "image", "video" or "marker" (row breaks, tile tags, newline vectors).
        positions: ascending positions in the padded sequence.
        image: which of the row's pictures this is, counted from 0; None where it is not known, and for videos.
        tile: which crop of that picture, 0 for the only one or the thumbnail.
        grid: patches as (rows, columns), row-major over `positions`; None where the layout is unknown.
        region: the part of the picture that the grid covers; None with an unknown layout.
        video: which of the row's videos this is, counted from 0; None where it is not known, and for pictures.
        frame: which frame of that video as the model sees it (models may drop frames, or merge two into one); None
            where a span holds several.
    """

    kind: Literal["image", "video", "marker"]
    positions: tuple[int, ...]
    image: int | None = None
    tile: int = 0
    grid: tuple[int, int] | None = None
    region: Box | None = None
    video: int | None = None
    frame: int | None = None

    @property
    def source(self) -> int | None:
        """Which picture, or which video."""
        return self.video if self.kind == "video" else self.image

    def __post_init__(self) -> None:
        if self.grid is not None and self.grid[0] * self.grid[1] != len(self.positions):
            raise PromptError(
                f"a grid of {self.grid[0]} x {self.grid[1]} patches cannot hold {len(self.positions)} visual tokens\n"
                "  the inputs were not made by this model's own processor, or the adapter is wrong for the model"
            )

    def __len__(self) -> int:
        return len(self.positions)

    def cell(self, position: int) -> tuple[int, int]:
        """The (row, column) of a token in the grid."""
        return divmod(self.positions.index(position), self._layout()[0][1])

    def box(self, position: int) -> Box:
        """The pixels that the patch of this token covers."""
        return self._box(*self.cell(position))

    def _box(self, row: int, column: int) -> Box:
        (rows, columns), region = self._layout()
        left, right = (_border(region.x0, region.x1, columns, column + i) for i in (0, 1))
        top, bottom = (_border(region.y0, region.y1, rows, row + i) for i in (0, 1))
        return Box(left, top, right, bottom)

    def at(self, x: float, y: float) -> int | None:
        """The token whose patch holds the pixel, or None where the region does not cover it."""
        (rows, columns), region = self._layout()
        if not (region.x0 <= x < region.x1 and region.y0 <= y < region.y1):
            return None
        across = (x - region.x0) / (region.x1 - region.x0)
        down = (y - region.y0) / (region.y1 - region.y0)
        row, column = min(int(down * rows), rows - 1), min(int(across * columns), columns - 1)
        box = self._box(row, column)  # a pixel on a border belongs to the box that begins there, however `down` rounds
        row += (y >= box.y1 and row + 1 < rows) - (y < box.y0 and row > 0)
        column += (x >= box.x1 and column + 1 < columns) - (x < box.x0 and column > 0)
        return self.positions[row * columns + column]

    def inside(self, box: Box) -> tuple[int, ...]:
        """The tokens whose patch overlaps the box with a positive area."""
        columns = self._layout()[0][1]
        cells = (divmod(index, columns) for index in range(len(self)))
        return tuple(
            position for position, cell in zip(self.positions, cells, strict=True) if self._box(*cell).overlaps(box)
        )

    def _layout(self) -> tuple[tuple[int, int], Box]:
        if self.grid is None or self.region is None:
            raise PromptError(
                f"the layout of these {len(self)} visual tokens is not known, so pixels cannot be mapped to tokens\n"
                "  the model's family has no adapter with a grid; masks, scores and interventions work all the same"
            )
        return self.grid, self.region


def _border(first: float, last: float, n: int, i: int) -> float:
    """Where the i-th of n cells begins; the last ends with the region, whatever the rounding, where the next begins."""
    return last if i == n else first + i * ((last - first) / n)


def runs(positions: list[int]) -> list[tuple[int, ...]]:
    """Split ascending positions into runs of neighbours.

    >>> runs([2, 3, 4, 8, 9])
    [(2, 3, 4), (8, 9)]
    """
    groups: list[list[int]] = []
    for position in positions:
        if groups and groups[-1][-1] == position - 1:
            groups[-1].append(position)
        else:
            groups.append([position])
    return [tuple(group) for group in groups]
