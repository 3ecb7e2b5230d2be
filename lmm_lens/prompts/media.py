"""Pictures and videos, however they are given, as PIL images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import PromptError
from .sources import open_image
from .videos import is_video, open_video

if TYPE_CHECKING:
    from PIL.Image import Image


def rows_of_images(images: Any, n_rows: int, batched: bool) -> list[list[Image]]:
    """Any way of giving pictures, as one list a batch row."""
    return [[open_image(image) for image in row] for row in listed_by_row(images, n_rows, batched, "image")]


def rows_of_videos(videos: Any, n_rows: int, batched: bool) -> list[list[list[Image]]]:
    """Any way of giving videos, as one list of videos a batch row; a video is a list of its frames."""
    return [[open_video(film) for film in row] for row in listed_by_row(videos, n_rows, batched, "video")]


def listed_by_row(given: Any, n_rows: int, batched: bool, kind: str) -> list[list[Any]]:
    """What was given of pictures or videos, unopened, as one list a batch row."""
    n_axes = 4 if kind == "image" else 5
    rows = _per_row(given, n_rows, kind, n_axes) if batched else [given]
    if kind == "video":
        return [_films(row) for row in rows]
    return [_several(row, n_axes) or _one(row) for row in rows]


def _films(row: Any) -> list[Any]:
    """The videos of a batch row, which are given as a list, or one of them as a list of frames."""
    entries = _several(row, 5)
    return (entries if is_video(entries[0]) else [row]) if entries else _one(row)


def _per_row(given: Any, n_rows: int, kind: str, n_axes: int) -> list[Any]:
    """What each row of a batch has."""
    if given is None:
        return [None] * n_rows
    entries = _several(given, n_axes)
    if entries is None or len(entries) != n_rows:
        told = f"one {type(given).__name__}" if entries is None else f"{len(entries)} entries"
        raise PromptError(
            f"{n_rows} texts need a list of {n_rows} entries as {kind}s, given {told}\n"
            f"  an entry is {'an' if kind == 'image' else 'a'} {kind}, a list of {kind}s, or None"
        )
    return entries


def _several(given: Any, n_axes: int) -> list[Any] | None:
    """The entries of a list, or of an array of so many axes; None for anything else, which is one."""
    return list(given) if isinstance(given, (list, tuple)) or getattr(given, "ndim", 0) == n_axes else None


def _one(given: Any) -> list[Any]:
    """What is not several, as a list."""
    return [] if given is None or isinstance(given, (list, tuple)) else [given]


def for_processor(clips: Sequence[Sequence[Sequence[Image]]]) -> list[Any]:
    """All videos of a batch as processors take them: uint8 arrays [frame, height, width, 3]."""
    import numpy as np

    return [np.stack([np.asarray(frame) for frame in film]) for row in clips for film in row]
