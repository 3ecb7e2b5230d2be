"""Where a picture comes from: a file, its bytes, base64 text, an array, a PIL image; never the network."""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import url2pathname

from ..errors import PromptError

if TYPE_CHECKING:
    from PIL.Image import Image

ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
BASE64 = re.compile(r"[A-Za-z0-9+/\-_\s]+=*\s*")
FILMS = (b"ftyp", b"RIFF", b"\x1aE\xdf\xa3")
"""How films begin: MP4 (after four bytes), AVI, Matroska and WebM."""
LEAST_OF_A_FILE = 32
"""Bytes."""
LONGEST_NAME, LONGEST_PATH = 240, 4096
"""Characters of a path that an error repeats, and that a text may have to be one."""
WAYS = {
    "image": (
        "an image",
        "an image is a PIL image, a path, bytes, base64, an open file, an array [height, width, 3] or a tensor "
        "[3, height, width]",
    ),
    "video": (
        "a video",
        "a video is a list of images, an array [frame, height, width, 3], a path, bytes, base64 or an open file",
    ),
}
ORIENTATION, ON_ITS_SIDE = 0x0112, (5, 6, 7, 8)
"""The tag of EXIF, and its values by which width and height change places."""
FIRST_OF_SEVERAL = ("MPO", "PSD")
"""Formats whose further frames are no other picture: a phone's preview or depth map, the layers of a drawing."""


def open_image(image: Any) -> Image:
    """A picture as a person sees it, in RGB, from any way of giving one.

    A PIL image; a path; the bytes of a file, or an open file; base64, plain or as a `data:` URL; an array [height,
    width, 3], a tensor [3, height, width], or one of those without colours or with transparency.

    Raises:
        PromptError: it is none of these, an address, no picture, a damaged one, or one of several frames.
    """
    from PIL import Image as Pillow

    if isinstance(image, Pillow.Image):
        with reading(name := f"a PIL image of mode {image.mode}"):
            return _only_frame(image, name)
    if hasattr(image, "__array__"):  # tensors, too
        from .pixels import picture_of

        name = f"{type(image).__name__} {tuple(image.shape)} of {image.dtype}"
        with reading(name):
            return picture_of(image, name)
    file, name = file_of(image, "image")
    with reading(name), Pillow.open(file) as opened:
        return _only_frame(opened, name)


def check_image(image: str | os.PathLike[str]) -> None:
    """PromptError for a file that is no picture, or one of several frames, from its first bytes; imports no torch."""
    from PIL import Image as Pillow

    file, name = file_of(image, "image")
    with reading(name), Pillow.open(file) as opened:
        _check_frames(opened, name)


def _only_frame(image: Image, name: str) -> Image:
    from .pixels import as_seen

    _check_frames(image, name)
    return as_seen(image, name)


def _check_frames(image: Image, name: str) -> None:
    if n_frames(image) > 1:
        raise PromptError(
            f"{name} has {n_frames(image)} frames or pages, but an image is one\n"
            "  give it with videos=..., or give one of its frames: image.seek(0), then image.convert('RGBA')"
        )


def n_frames(image: Image) -> int:
    """How many pictures a file of PIL's holds."""
    return 1 if getattr(image, "format", None) in FIRST_OF_SEVERAL else getattr(image, "n_frames", 1)


def size_as_seen(image: Image) -> tuple[int, int]:
    """(width, height) that a picture has once it is turned as the camera was held, without decoding it."""
    width, height = image.size
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return width, height  # turned already; and to look further PIL would decode it
    return (height, width) if image.getexif().get(ORIENTATION) in ON_ITS_SIDE else (width, height)


@contextmanager
def reading(name: str, what: str = "image") -> Iterator[None]:
    """Turn whatever stops a decoder into one error that says what was read."""
    try:
        yield
    except PromptError:
        raise
    except Exception as error:  # decoders meet damaged files in ways of their own
        raise PromptError(f"{name} cannot be opened as {WAYS[what][0]}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    from PIL import Image as Pillow
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return (
            "cannot identify its format, or it is damaged\n  images are files that PIL can open; films go to videos=..."
        )
    if isinstance(error, (Pillow.DecompressionBombError, Pillow.DecompressionBombWarning)):
        return f"{error}\n  if you trust it, set PIL.Image.MAX_IMAGE_PIXELS = None, open it and resize it"
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return text.splitlines()[0]


def file_of(given: Any, what: str) -> tuple[Any, str]:
    """What PIL and decoders of videos open, a path or an open file, and its name for errors.

    Args:
        given: a path, bytes, an open file, base64.
        what: "image" or "video".

    Raises:
        PromptError: it is none of these, or an address.
    """
    if isinstance(given, Mapping) and {"bytes", "path"} & set(given):  # as tables of Hugging Face hold them
        given = given.get("bytes") or given.get("path")
    if isinstance(given, (bytes, bytearray, memoryview)):
        return io.BytesIO(given), f"{what} of {len(given)} bytes"
    if isinstance(given, (str, os.PathLike)) and isinstance(os.fspath(given), str):
        return _named(os.fspath(given))
    name = getattr(given, "name", type(given).__name__)
    if isinstance(given, io.TextIOBase):
        raise PromptError(f"the file {name!r} is open as text, and so can be no {what}\n  open it with mode 'rb'")
    if hasattr(given, "read"):
        return given, f"the file {name!r}"
    raise PromptError(f"expected {WAYS[what][0]}, given {type(given).__name__}\n  {WAYS[what][1]}")


def _named(text: str) -> tuple[Any, str]:
    """A path, or what the text itself holds."""
    if text[:5].lower() == "data:":
        return io.BytesIO(_in_url(text)), _shown(text)
    short = _shown(text, LONGEST_NAME)
    if os.path.isfile(text):
        return Path(text), short
    address = ADDRESS.match(text)
    if address and address[1].lower() == "file":
        return Path(url2pathname(urlsplit(text).path)), short
    if address:
        raise PromptError(
            f"{short} is an address, and nothing is downloaded: what stands there can change, or be gone\n"
            "  fetch it yourself, and give its path or its bytes"
        )
    held = _decoded(text) if BASE64.fullmatch(text) else None
    if held and _begins_like_media(held):
        return io.BytesIO(held), f"the base64 text {_shown(text)}"
    return (Path(text), short) if len(text) < LONGEST_PATH else (io.BytesIO(), f"the text {_shown(text)}")


def _shown(text: str, longest: int = 60) -> str:
    """A text as an error repeats it."""
    return repr(text if len(text) <= longest else text[:longest] + "...")


def _in_url(url: str) -> bytes:
    head, _, data = url.partition(",")
    held = unquote_to_bytes(data)
    if head.lower().endswith(";base64"):
        held = _decoded(held.decode("ascii", "replace")) or b""
    if not held:
        raise PromptError(f"{_shown(url)} holds nothing that can be decoded\n  expected data:image/png;base64,...")
    return held


def _decoded(text: str) -> bytes | None:
    """What a text holds in base64, of either alphabet, with or without the signs that fill it up."""
    compact = "".join(text.split()).rstrip("=").translate(str.maketrans("-_", "+/"))
    try:
        return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except ValueError:
        return None


def _begins_like_media(held: bytes) -> bool:
    """Whether bytes begin as a picture does that PIL knows, whole or not, or as a film does."""
    from PIL import Image as Pillow

    Pillow.init()
    knows = (accept for _, accept in Pillow.OPEN.values() if accept)
    return len(held) > LEAST_OF_A_FILE and (held[4:8] in FILMS or held[:4] in FILMS or any(k(held[:16]) for k in knows))
