"""Pictures and videos, however they are given, as PIL images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import PromptError

if TYPE_CHECKING:
    from PIL.Image import Image


def rows_of_images(images: Any, n_rows: int, batched: bool) -> list[list[Image]]:
    """Any way of giving pictures, as one list a batch row."""
    if images is None:
        return [[] for _ in range(n_rows)]
    if not batched:
        rows = [images if isinstance(images, (list, tuple)) else [images]]
    else:
        if not isinstance(images, (list, tuple)) or len(images) != n_rows:
            given = f"{len(images)} entries" if isinstance(images, (list, tuple)) else f"one {type(images).__name__}"
            raise PromptError(
                f"{n_rows} texts need a list of {n_rows} entries as images, given {given}\n"
                "  an entry is an image, a list of images, or None"
            )
        rows = [list(r) if isinstance(r, (list, tuple)) else ([] if r is None else [r]) for r in images]
    return [[open_image(image) for image in row] for row in rows]


def open_image(image: Any) -> Image:
    """A PIL image from a PIL image, a path, an array [height, width, 3] of 0..255, or a tensor [3, height, width].

    Raises:
        PromptError: it is none of these, or the file is not a picture.
    """
    import numpy as np
    from PIL import Image as Pillow

    if isinstance(image, Pillow.Image):
        return image.convert("RGB")
    if isinstance(image, (str, os.PathLike)):
        try:
            return Pillow.open(Path(image)).convert("RGB")
        except (OSError, ValueError) as error:
            raise PromptError(f"{os.fspath(image)!r} cannot be opened as an image: {error}") from error
    array = image.permute(1, 2, 0).cpu().numpy() if isinstance(image, Tensor) and image.ndim == 3 else image
    if isinstance(array, np.ndarray) and array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8:
        return Pillow.fromarray(array)
    shape = f" {tuple(image.shape)} of {image.dtype}" if hasattr(image, "shape") else ""
    raise PromptError(
        f"expected an image, given {type(image).__name__}{shape}\n"
        "  an image is a PIL image, a path, a uint8 array [height, width, 3] or a uint8 tensor [3, height, width]"
    )


def rows_of_videos(videos: Any, n_rows: int, batched: bool) -> list[list[list[Image]]]:
    """Any way of giving videos, as one list of videos a batch row; a video is a list of its frames."""
    if videos is None or (not batched and not len(videos)):
        return [[] for _ in range(n_rows)]
    if not batched:
        return [[open_video(film) for film in (videos if _holds_videos(videos) else [videos])]]
    if not isinstance(videos, (list, tuple)) or len(videos) != n_rows:
        given = f"{len(videos)} entries" if isinstance(videos, (list, tuple)) else f"one {type(videos).__name__}"
        raise PromptError(
            f"{n_rows} texts need a list of {n_rows} entries as videos, given {given}\n"
            "  an entry is a video, a list of videos, or None"
        )
    rows = [[] if row is None or not len(row) else row if _holds_videos(row) else [row] for row in videos]
    return [[open_video(film) for film in row] for row in rows]


def _holds_videos(given: Any) -> bool:
    """Whether this is a list of videos, not a video as a list of frames."""
    first = given[0] if isinstance(given, (list, tuple)) and given else None
    return isinstance(first, (list, tuple)) or getattr(first, "ndim", 0) == 4


def open_video(video: Any) -> list[Image]:
    """The frames of a video given as a list of images or as a uint8 array [frame, height, width, 3].

    Raises:
        PromptError: it is neither, has no frames, or frames of different sizes.
    """
    if not isinstance(video, (list, tuple)) and getattr(video, "ndim", 0) != 4:
        raise PromptError(
            f"expected a video as a list of images or a uint8 array [frame, height, width, 3], given "
            f"{type(video).__name__}\n  decode a file first, with PyAV or decord, and give the frames you want seen"
        )
    frames = [open_image(frame) for frame in video]
    if len({frame.size for frame in frames}) != 1:
        sizes = sorted({frame.size for frame in frames})
        raise PromptError(f"a video needs frames, all of one size, given {len(frames)} frames of sizes {sizes}")
    return frames


def for_processor(clips: Sequence[Sequence[Sequence[Image]]]) -> list[Any]:
    """All videos of a batch as processors take them: uint8 arrays [frame, height, width, 3]."""
    import numpy as np

    return [np.stack([np.asarray(frame) for frame in film]) for row in clips for film in row]
