"""Scenes: one to five coloured shapes on a 3 x 3 grid of cells, and where each of them lies in the picture.

A picture is 48 x 48 pixels, a cell 16 x 16, a patch of the vision tower 8 x 8, so a cell is four patches and
a picture 36 visual tokens. Cells count 0..8 and patches 0..35 row by row from the top left.
"""

import random
from dataclasses import dataclass

from lmm_lens.bundled import worlds
from lmm_lens.bundled.worlds import (
    GRID,
    PATCHES_PER_SIDE,
    CellBox,
    cell_patches,
    check_scene,
    check_wanted,
    is_held_out,
)

SHAPES = ("circle", "square", "triangle", "star", "cross")
COLORS = ("red", "green", "blue", "yellow", "purple", "cyan")

CELL = 16  # pixels a side
SIZE = GRID * CELL  # 48 pixels
PATCH = SIZE // PATCHES_PER_SIDE  # 8 pixels a side


@dataclass(frozen=True, order=True)
class Thing:
    """One coloured shape in one cell."""

    cell: int
    color: str
    shape: str

    def __str__(self) -> str:
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """The things of one picture, in reading order, at most one a cell."""

    things: tuple[Thing, ...]

    def __post_init__(self) -> None:
        check_scene([thing.cell for thing in self.things])

    @property
    def empty_cells(self) -> tuple[int, ...]:
        taken = {thing.cell for thing in self.things}
        return tuple(cell for cell in range(GRID * GRID) if cell not in taken)

    def recolored(self, thing: Thing, color: str) -> "Scene":
        """The same scene with one thing in another colour."""
        new = Thing(thing.cell, color, thing.shape)
        return Scene(tuple(new if other == thing else other for other in self.things))


def cell_box(cell: int) -> CellBox:
    """Pixel box (x0, y0, x1, y1) of a cell, the far edges exclusive."""
    return worlds.cell_box(cell, CELL)


def boxes(scene: Scene) -> dict[Thing, CellBox]:
    """The pixel box of every thing: the cell it was drawn in."""
    return {thing: cell_box(thing.cell) for thing in scene.things}


def sink_patches(scene: Scene) -> tuple[int, ...]:
    """Visual tokens that carry a planted sink: the top-left patch of the first and of the last empty cell."""
    empty = scene.empty_cells
    chosen = {empty[0], empty[-1]} if empty else set()
    return tuple(cell_patches(cell)[0] for cell in sorted(chosen))


def held_out(scene: Scene) -> bool:
    """Whether this arrangement is kept from training: one in eight, by a checksum of its description."""
    return is_held_out(";".join(f"{thing.cell} {thing}" for thing in scene.things))


def random_scene(rng: random.Random, things: tuple[int, int] = (1, 5), split: str = "held out") -> Scene:
    """A random scene with things[0] to things[1] things, from one side of the train / held-out split."""
    check_wanted(things, split)
    while True:
        cells = sorted(rng.sample(range(GRID * GRID), rng.randint(*things)))
        scene = Scene(tuple(Thing(cell, rng.choice(COLORS), rng.choice(SHAPES)) for cell in cells))
        if held_out(scene) == (split == "held out"):
            return scene
