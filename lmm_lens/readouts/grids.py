"""Things of patches laid out as the patches lie, also where a picture is cut into crops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from ..figures.canvas import Canvas

Thing = TypeVar("Thing")


def as_grid(canvas: Canvas, things: Mapping[int, Thing], missing: Thing) -> list[list[Thing]]:
    """What belongs to each patch, by lines from the top.

    Args:
        canvas: with the patches.
        things: by the position of the patch's token.
        missing: for patches of which nothing is given.
    """
    boxes = {position: canvas.box(position) for position in canvas.positions}
    lines = sorted({round(box.y0, 3) for box in boxes.values()})
    columns = sorted({round(box.x0, 3) for box in boxes.values()})
    grid = [[missing] * len(columns) for _ in lines]
    for position, box in boxes.items():
        line, column = lines.index(round(box.y0, 3)), columns.index(round(box.x0, 3))
        grid[line][column] = things.get(position, missing)
    return grid
