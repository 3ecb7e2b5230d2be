"""Pictures of a data set: found and looked at, but not decoded before a prompt needs them."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ScoreError
from ..prompts.sources import size_as_seen
from .problems import RowError
from .sample import BoxLike, as_box

if TYPE_CHECKING:
    from .sample import Picture

Size = tuple[int, int]
"""Width and height in pixels, as a person sees the picture."""


def folder_of(path: str | os.PathLike[str], what: str = "pictures") -> Path:
    """A folder that is there.

    Raises:
        ScoreError: it is not.
    """
    if not Path(path).is_dir():
        raise ScoreError(f"there is no folder {os.fspath(path)!r} of {what}")
    return Path(path)


def picture(value: Any, folder: Path, outside: bool = False, links: bool = True) -> tuple[Picture, Size]:
    """A picture as a row names or holds it.

    Its file must exist and begin as a picture does; PNG files also have every check sum tested. It is not decoded.

    Args:
        value: a path, a PIL image, the bytes of a file, or {"bytes": ..., "path": ...} as Hugging Face tables store it.
        folder: that relative paths start from, and that the picture must lie in.
        outside: whether it may lie anywhere.
        links: whether a link within the folder may lead out of it.

    Raises:
        RowError: there is none, or it is none.
    """
    from PIL import Image as Pillow

    if isinstance(value, Mapping) and {"bytes", "path"} & set(value):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, Pillow.Image):
        return value, size_as_seen(value)
    if isinstance(value, (bytes, bytearray)):
        _look(io.BytesIO(value), f"the picture of {len(value)} bytes")
        held = Pillow.open(io.BytesIO(value))
        return held, size_as_seen(held)
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise RowError("no picture", f"expected a picture or its path, given {value!r:.60}")
    if "://" in os.fspath(value):
        raise RowError("no picture", f"{os.fspath(value)} is an address, expected a path: download it first")
    path = folder / value
    if not outside and "\0" not in os.fspath(value):
        _check_inside(path, folder, links)
    try:
        status = path.stat()
    except (OSError, ValueError):
        raise RowError(
            "missing picture", f"the picture {os.fspath(value)} does not exist in {folder.name or folder}"
        ) from None
    return path, _size(path, status.st_mtime_ns, status.st_size)


def _check_inside(path: Path, folder: Path, links: bool) -> None:
    """RowError for a picture that a row takes from outside the folder of pictures: a table may come from anybody."""
    real = (Path(os.path.normpath(os.path.abspath(each))) if links else each.resolve() for each in (path, folder))
    found, root = real
    if not found.is_relative_to(root):
        raise RowError(
            "picture outside",
            f"the picture {os.fspath(path)} lies outside the folder of pictures {folder.name or str(folder)!r}: name a "
            "folder that holds all of them, or, where you know the rows, allow it with table(..., outside=True)",
        )


@lru_cache(maxsize=64)  # questions about one picture follow each other
def _size(path: Path, changed: int, n_bytes: int) -> Size:
    return _look(path, f"the picture {path.name}")


def _look(file: Any, name: str) -> Size:
    from PIL import Image as Pillow
    from PIL import UnidentifiedImageError

    try:
        with Pillow.open(file) as opened:
            size = size_as_seen(opened)
            opened.verify()
    except (OSError, SyntaxError, ValueError, Pillow.DecompressionBombError) as error:
        why = "its format is unknown" if isinstance(error, UnidentifiedImageError) else str(error)
        raise RowError("unreadable picture", f"{name} cannot be read: {why}") from error
    return size


def boxes_in(given: Sequence[Any], size: Size, cut: bool = False) -> tuple[BoxLike, ...]:
    """Boxes, all of them within a picture.

    Args:
        given: four numbers each.
        size: of the picture.
        cut: keep of each what lies in the picture, if anything does.

    Raises:
        RowError: one is no box, or reaches out of the picture.
    """
    width, height = size
    found = []
    for numbers in given:
        try:
            x0, y0, x1, y1 = as_box(numbers)
        except ScoreError as error:
            raise RowError("no box", str(error)) from None
        if cut:
            x0, y0, x1, y1 = max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise RowError(
                "box outside", f"the box {list(numbers)} is outside its picture of {width} x {height} pixels"
            )
        found.append((x0, y0, x1, y1))
    return tuple(found)
