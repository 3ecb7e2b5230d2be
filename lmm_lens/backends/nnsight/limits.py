"""How large an answer of a server may become in this computer's memory."""

from __future__ import annotations

import io
import os

from ...errors import LensError, RemoteError

VARIABLE = "LMM_LENS_ANSWER_BYTES"
USUAL = 2 * 2**30  # the patterns of all heads of a 7B model for one picture are 1.4 GB
CHUNK = 2**20
SMALL = 4 * 2**20  # of a status, a list of models, an error page


def answer_limit() -> int:
    """Bytes that an answer may have, and that it may have once it is unpacked.

    Raises:
        LensError: the environment variable that raises it holds no number of bytes.
    """
    given = os.environ.get(VARIABLE, "")
    try:
        limit = int(float(given)) if given else USUAL
    except (ValueError, OverflowError):
        limit = 0
    if limit <= 0:
        raise LensError(f"{VARIABLE} is the number of bytes that an answer may have, as in 8e9; it is {given!r}")
    return limit


def too_large(limit: int) -> RemoteError:
    """The error for an answer beyond it."""
    if limit == SMALL:
        return RemoteError(
            f"what the server says is larger than {limit:,} bytes, and was not read any further\n"
            "  no status and no error is that large: check the address"
        )
    return RemoteError(
        f"the server's answer is larger than {limit:,} bytes, and was not read any further\n"
        f"  read fewer rows, layers or heads, or raise the limit with the environment variable {VARIABLE}"
    )


def decompressed(content: bytes, limit: int) -> bytes:
    """What zstandard made smaller, piece by piece: a header says what it likes of the size.

    Raises:
        RemoteError: it is larger than the limit.
    """
    import zstandard

    whole = io.BytesIO()
    with zstandard.ZstdDecompressor().stream_reader(content) as reader:
        while piece := reader.read(CHUNK):
            if whole.tell() + len(piece) > limit:
                raise too_large(limit)
            whole.write(piece)
    return whole.getvalue()
