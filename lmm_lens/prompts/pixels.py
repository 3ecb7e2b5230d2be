"""Every kind of pixel as a person would see it: eight bits of red, green and blue, upright, on white.

PIL's own `convert("RGB")` clips 16-bit and float pixels to white or black, shows the colours that transparency hides,
and leaves a photo as the camera lay. Here numbers are scaled by their range; where that range is not clear, the picture
is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import PromptError

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import UInt8
    from PIL.Image import Image

WHITE_IS_ZERO = 262, 0
"""The tag of a TIFF file, and its value, by which small numbers are bright. PIL heeds it up to 8 bits a pixel."""
LEAST_OF_16_BITS = 4096
"""Numbers of 16 bits that stay below this are of fewer bits in truth, or nearly black: which, they do not tell."""
LEAST_OF_BYTES = 16
"""The same for floats of 0 to 255, which could be floats of 0 to 1 that overshoot."""
OVERSHOOT = 1e-3
"""How far resizing may take floats out of 0 to 1."""
CHANNELS = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def as_seen(image: Image, name: str) -> Image:
    """An RGB picture of a loaded PIL image of one frame.

    Args:
        image: of any mode.
        name: for errors.

    Raises:
        PromptError: there is no pixel, or how bright its numbers are meant is not clear.
    """
    from PIL import Image as Pillow
    from PIL import ImageOps

    if 0 in image.size:
        raise PromptError(f"{name} has no pixel: it is {image.width} x {image.height}")
    tag, white = WHITE_IS_ZERO
    is_inverted = getattr(image, "tag_v2", {}).get(tag) == white  # a copy has no tags
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = Pillow.fromarray(_grey(image, name, is_inverted))
    if not image.has_transparency_data:
        return image.convert("RGB")
    # a premultiplied mode goes by its own plain one alone
    image = image.convert({"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode)).convert("RGBA")
    return Pillow.alpha_composite(Pillow.new("RGBA", image.size, "white"), image).convert("RGB")


def _grey(image: Image, name: str, is_inverted: bool) -> UInt8[np.ndarray, "height width"]:
    """The bytes of a picture of one number a pixel, of 16 or 32 bits."""
    import numpy as np

    values = np.asarray(image)
    scaled = as_bytes(values.astype(np.uint16) if image.mode.startswith("I;16") else values, name)
    clear = image.info.get("transparency")
    if is_inverted:
        scaled = 255 - scaled
    return np.where(values == clear, np.uint8(255), scaled) if isinstance(clear, int) else scaled


def as_bytes(values: np.ndarray, name: str) -> UInt8[np.ndarray, " ..."]:
    """Brightness as bytes of 0 to 255, by the range of the numbers.

    Bytes are taken as they are, and True is white. Floats are of 0 to 1, or of 0 to 255; wider integers are bytes too
    where none is above 255, and of 0 to 65535 otherwise, as 16-bit numbers always are; of these the high byte is kept.

    Raises:
        PromptError: there are other numbers, or they could be meant in two ways.
    """
    import numpy as np

    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.kind not in "iuf":
        raise PromptError(f"expected numbers as pixels, {name} has {values.dtype}")
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise PromptError(f"{name} holds pixels that are NaN or infinite\n  expected 0 to 1, or 0 to 255")
    if values.dtype.kind == "f":
        if low >= -OVERSHOOT and high <= 1 + OVERSHOOT:
            return _rounded(values.astype(np.float64).clip(0, 1) * 255)
        if low >= 0 and LEAST_OF_BYTES <= high <= 255:
            return _rounded(values)
    elif low >= 0:
        if high == 0 or (high <= 255 and values.dtype != np.uint16):
            return values.astype(np.uint8)
        if LEAST_OF_16_BITS <= high <= 65535:
            return (values.astype(np.uint32) >> 8).astype(np.uint8)
        if high < LEAST_OF_16_BITS:
            raise PromptError(
                f"{name} has pixels of 16 bits, but none is above {high:.0f} of 65535: the model would see black\n"
                "  scale it to the range it is meant in, such as (pixels / pixels.max() * 255).astype('uint8')"
            )
    raise PromptError(
        f"the pixels of {name} go from {low:g} to {high:g}; expected 0 to 255, floats of 0 to 1, or 16 bits\n"
        "  give the picture as it was before it was normalized, or scale it"
    )


def _rounded(values: np.ndarray) -> UInt8[np.ndarray, " ..."]:
    import numpy as np

    rounded: np.ndarray = np.rint(values).astype(np.uint8)
    return rounded


def picture_of(array: Any, name: str) -> Image:
    """A picture from an array or a tensor, with the colours last or first, grey or with transparency.

    Where both could be, colours are last in an array [height, width, 3] and first in a tensor [3, height, width].

    Raises:
        PromptError: it is no picture, or as `as_bytes`.
    """
    import numpy as np
    from PIL import Image as Pillow

    values = _numbers(array, name)
    if 0 in values.shape:
        raise PromptError(f"{name} has no pixel")
    if values.ndim == 2:
        return Pillow.fromarray(as_bytes(values, name)).convert("RGB")
    last, first = (values.shape[axis] in CHANNELS for axis in (-1, 0)) if values.ndim == 3 else (False, False)
    if last and first:  # the usual order tells
        usual = 0 if isinstance(array, Tensor) else -1
        last, first = usual == -1 and values.shape[-1] == 3, usual == 0 and values.shape[0] == 3
        if not (last or first):
            raise PromptError(
                f"expected an image, given {name}: which dimension holds the colours is not clear\n"
                "  give an array [height, width, 3] or a tensor [3, height, width]"
            )
    if not (last or first):
        raise PromptError(
            f"expected an image, given {name}\n"
            "  an array of an image is [height, width], [height, width, 3] or [3, height, width]; 1 or 4 instead of 3 "
            "for grey or transparency"
        )
    values = as_bytes(values if last else values.transpose(1, 2, 0), name)
    return as_seen(Pillow.fromarray(values[..., 0] if values.shape[-1] == 1 else np.ascontiguousarray(values)), name)


def _numbers(array: Any, name: str) -> np.ndarray:
    import numpy as np

    if not isinstance(array, Tensor):
        return np.asarray(array)
    if array.is_meta:
        raise PromptError(f"{name} is on the meta device, where it has no values\n  load it onto a real one")
    array = array.detach().cpu()
    numbers: np.ndarray = (array.float() if array.dtype == torch.bfloat16 else array).numpy()
    return numbers
