"""What the worlds in the box share: a 3 x 3 grid of cells, questions, and arrangements that are kept from training.

A cell is four patches of the vision tower, so a picture is 36 visual tokens, whatever its pixels. Cells count 0..8 and
patches 0..35 row by row from the top left.
"""

import zlib
from dataclasses import dataclass

ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")

GRID = 3  # cells a side
PATCHES_PER_SIDE = 2 * GRID
N_PATCHES = PATCHES_PER_SIDE**2  # visual tokens

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

HELD_OUT_ONE_IN = 8

CellBox = tuple[int, int, int, int]


@dataclass(frozen=True)
class Question:
    """A question, its one right answer, and its type."""

    kind: str
    text: str
    answer: str


def place_name(cell: int) -> str:
    """The words for a cell: 0 is "top left", 8 is "bottom right"."""
    return f"{ROWS[cell // GRID]} {COLUMNS[cell % GRID]}"


def cell_box(cell: int, side: int) -> CellBox:
    """Pixel box (x0, y0, x1, y1) of a cell of so many pixels a side, the far edges exclusive."""
    x0, y0 = (cell % GRID) * side, (cell // GRID) * side
    return x0, y0, x0 + side, y0 + side


def cell_patches(cell: int) -> tuple[int, int, int, int]:
    """The four visual tokens of a cell, top left first."""
    top_left = 2 * (cell // GRID) * PATCHES_PER_SIDE + 2 * (cell % GRID)
    return top_left, top_left + 1, top_left + PATCHES_PER_SIDE, top_left + PATCHES_PER_SIDE + 1


def is_held_out(description: str) -> bool:
    """Whether an arrangement is kept from training: one in eight, by a checksum of its description."""
    return zlib.crc32(description.encode()) % HELD_OUT_ONE_IN == 0


def check_scene(cells: list[int]) -> None:
    """ValueError unless these cells are in reading order, each once."""
    if cells != sorted(set(cells)):
        raise ValueError(f"a scene holds one thing a cell, in reading order; got cells {cells}")


def check_wanted(things: tuple[int, int], split: str) -> None:
    """ValueError unless random scenes can have so many things and be of such a side of the split."""
    if split not in ("train", "held out"):
        raise ValueError(f"split is 'train' or 'held out', got {split!r}")
    if not 1 <= things[0] <= things[1] <= GRID * GRID:
        raise ValueError(f"things is (fewest, most) with 1 <= fewest <= most <= 9, got {things!r}")
