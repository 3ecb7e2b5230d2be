"""Attention in few bytes: each head's row in steps of the square root of its largest weight, deflated.

A weight `a` of a row whose largest is `m` becomes the whole number nearest to `n sqrt(a / m)`, n = 255 or 65535. The
square root spends the steps on small weights, of which a row has many. What comes back is within `m / n` of `a`:
`|a - b| = m |x - y| |x + y|` with `x, y` in [0, 1] and `|x - y| <= 1 / 2n`.
"""

from __future__ import annotations

import base64
import zlib
from typing import TYPE_CHECKING, NamedTuple

from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    import numpy

FINE, COARSE = 65535, 255
MAX_FINE = 4_000_000  # weights up to which a page spends two bytes on each


def steps_for(n_values: int) -> int:
    """How many steps a page of so many weights can afford."""
    return FINE if n_values <= MAX_FINE else COARSE


class Packed(NamedTuple):
    """Rows of attention as text.

    Attributes:
        weights: base64 of deflated bytes: all high bytes, then, with 65535 steps, all low bytes.
        largest: base64 of Float32[layer, head], the largest weight of each row.
    """

    weights: str
    largest: str


def pack_weights(rows: Float[Tensor, "layer head key"], steps: int) -> Packed:
    """Pack one query's rows; heads that are not there (NaN) become 0, with a largest weight of NaN."""
    largest = rows.amax(-1, keepdim=True)
    share = rows.double() / largest.double().where(largest > 0, 1.0)
    levels = (share.clamp(0, 1).sqrt() * steps).round().nan_to_num(0).numpy().astype("<u2")
    planes = [levels] if steps == COARSE else [levels >> 8, levels & 255]
    body = b"".join(plane.astype("u1").tobytes() for plane in planes)
    return Packed(as_text(zlib.compress(body, 6)), floats(largest[..., 0]))


def unpack(packed: Packed, shape: tuple[int, int, int], steps: int) -> numpy.ndarray:
    """What a browser makes of it: float64[layer, head, key]."""
    import numpy

    planes = numpy.frombuffer(zlib.decompress(base64.b64decode(packed.weights)), "u1").reshape(-1, *shape)
    levels: numpy.ndarray = planes[0].astype(float) if steps == COARSE else planes[0] * 256.0 + planes[1]
    largest = numpy.frombuffer(base64.b64decode(packed.largest), "<f4").reshape(*shape[:2], 1)
    weights: numpy.ndarray = largest * (levels / steps) ** 2
    return weights


def floats(values: Tensor) -> str:
    """Numbers as base64 of little-endian float32."""
    return as_text(values.float().contiguous().numpy().astype("<f4").tobytes())


def as_text(data: bytes) -> str:
    """Bytes as base64."""
    return base64.b64encode(data).decode()
