"""Videos as lists of frames: from frames, arrays, animated pictures, and films that an installed decoder reads.

Every frame is kept, whatever time it lasts: which frames a model sees is a choice, and not made here.
"""

from __future__ import annotations

import importlib.util
import io
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import PromptError
from .pixels import as_seen
from .sources import file_of, n_frames, open_image, reading

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_BYTES = 4 << 30
"""Of the frames of a film, some twenty seconds at 1080p; of a longer one those to be seen have to be chosen."""


def open_video(video: Any) -> list[Image]:
    """The frames of a video as a person sees them, in RGB and all of one size.

    A list of images; an array [frame, height, width, 3] or a tensor [frame, 3, height, width]; an animated picture or a
    film as a path, bytes, base64 or an open file; an animated PIL image.

    Raises:
        PromptError: it is none of these, has no frames or frames of different sizes, or cannot be decoded.
    """
    from PIL import Image as Pillow

    if isinstance(video, (list, tuple)) or getattr(video, "ndim", 0) == 4:
        frames = [open_image(frame) for frame in video]
    elif isinstance(video, Pillow.Image):
        with reading(name := f"a PIL image of mode {video.mode}", "video"):
            at = video.tell()
            frames = _moments(video, name)
            video.seek(at)
    else:
        frames = _of_file(*file_of(video, "video"))
    if len({frame.size for frame in frames}) != 1:
        sizes = sorted({frame.size for frame in frames})
        raise PromptError(f"a video needs frames, all of one size, given {len(frames)} frames of sizes {sizes}")
    return frames


def is_video(given: Any) -> bool:
    """Whether this is a video, not one frame of it.

    Raises:
        PromptError: it is an address.
    """
    from PIL import Image as Pillow
    from PIL import UnidentifiedImageError

    if isinstance(given, (list, tuple)) or hasattr(given, "__array__"):
        return getattr(given, "ndim", 4) == 4
    if isinstance(given, Pillow.Image):
        return n_frames(given) > 1
    if not hasattr(given, "read") and not isinstance(given, (str, bytes, bytearray, memoryview, Path)):
        return False
    file, _ = file_of(given, "video")
    try:
        with Pillow.open(file) as opened:
            return n_frames(opened) > 1
    except UnidentifiedImageError:
        return True
    except Exception:  # not there, or damaged, which whoever opens it says
        return False


def _of_file(file: Any, name: str) -> list[Image]:
    from PIL import Image as Pillow
    from PIL import UnidentifiedImageError

    with reading(name, "video"):
        try:
            opened = Pillow.open(file)
        except UnidentifiedImageError:
            return _of_film(file, name)
        with opened:
            return _moments(opened, name)


def _moments(animation: Image, name: str) -> list[Image]:
    """All frames of an animated picture, but the one that stands in for it where it cannot be animated."""
    first = int(bool(getattr(animation, "default_image", False)))
    frames = []
    for index in range(first, n_frames(animation)):
        animation.seek(index)
        frames.append(as_seen(animation.copy(), f"frame {index} of {name}"))
    return frames


def _of_film(file: Any, name: str) -> list[Image]:
    """All frames of a film, by the first decoder that is installed."""
    read = next((read for module, read in DECODERS.items() if importlib.util.find_spec(module)), None)
    if read is None:
        raise PromptError(
            f"{name} is no picture that PIL knows, and to decode films nothing is installed\n"
            "  pip install av (or opencv-python), or give its frames as a list of images"
        )
    frames, n_bytes = [], 0
    for frame in read(file if isinstance(file, Path) else io.BytesIO(_all_of(file))):
        frames.append(frame)
        n_bytes += 3 * frame.width * frame.height
        if n_bytes > MOST_BYTES:
            raise PromptError(
                f"{name} has more than {len(frames) - 1} frames of {frame.width} x {frame.height}, "
                f"{MOST_BYTES >> 30} GiB\n"
                "  decode it yourself, and give the frames that should be seen as a list of images"
            )
    return frames


def _all_of(file: Any) -> bytes:
    if hasattr(file, "seek"):
        file.seek(0)
    held = file.read()
    assert isinstance(held, bytes)
    return held


def _by_av(file: Path | io.BytesIO) -> Iterator[Image]:
    import av

    level, skips = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)
    try:
        with av.logging.Capture() as said, av.open(str(file) if isinstance(file, Path) else file, "r") as film:
            frame: Any
            for frame in film.decode(video=0):
                image = frame.to_image()
                yield image.rotate(frame.rotation, expand=True) if frame.rotation else image
    finally:
        av.logging.set_level(level)
        av.logging.set_skip_repeated(skips)
    if said:  # a film that was cut off ends without another sign
        raise ValueError(said[0][2].strip())


def _by_opencv(file: Path | io.BytesIO) -> Iterator[Image]:
    import cv2
    from PIL import Image as Pillow

    with tempfile.NamedTemporaryFile() as copy:
        if not isinstance(file, Path):
            copy.write(file.getvalue())
            copy.flush()
        film = cv2.VideoCapture(str(file) if isinstance(file, Path) else copy.name)
        if not film.isOpened():
            raise ValueError("OpenCV knows no such format, or it is damaged")
        n_promised, n_read = int(film.get(cv2.CAP_PROP_FRAME_COUNT)), 0
        while (read := film.read())[0]:
            n_read += 1
            yield Pillow.fromarray(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB))
        film.release()
    if n_read < n_promised:
        raise ValueError(f"OpenCV reads {n_read} of {n_promised} frames: it is damaged, or needs `pip install av`")


DECODERS: dict[str, Callable[[Path | io.BytesIO], Iterator[Image]]] = {"av": _by_av, "cv2": _by_opencv}
"""By the module that does it, the better first. Both turn a film as the camera was held."""
