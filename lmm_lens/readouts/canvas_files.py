"""Pictures in the files of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..figures.canvas import Canvas


def pixels_of(canvases: Sequence[Canvas]) -> dict[str, Tensor]:
    """The pictures as tensors of a file; looks at the same picture share one."""
    owners = _owners(canvases)
    return {
        f"pixels {i}": canvas.pixels
        for i, canvas in enumerate(canvases)
        if canvas.pixels is not None and owners[i] == i
    }


def canvases_about(canvases: Sequence[Canvas]) -> list[dict[str, Any]]:
    """What the header of a file says of them."""
    owners = _owners(canvases)
    return [{**canvas.about(), "pixels": owners[i]} for i, canvas in enumerate(canvases)]


def canvases_in(about: Sequence[Mapping[str, Any]], tensors: Mapping[str, Tensor]) -> tuple[Canvas, ...]:
    """The pictures of a file."""
    return tuple(
        Canvas.restored(each, None if each["pixels"] is None else tensors[f"pixels {each['pixels']}"]) for each in about
    )


def _owners(canvases: Sequence[Canvas]) -> list[int | None]:
    """For each, which canvas's pixels are its own; None where there are none."""
    owners: list[int | None] = []
    for i, canvas in enumerate(canvases):
        same = (j for j in range(i + 1) if canvas.pixels is not None and _is_same(canvases[j].pixels, canvas.pixels))
        owners.append(next(same, None))
    return owners


def _is_same(one: Tensor | None, other: Tensor) -> bool:
    return one is not None and one.shape == other.shape and bool((one == other).all())
