"""Files that are whole or not there, also after a crash or a power cut, and that know when they are damaged."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import ScoreError


class DamagedError(ValueError):
    """A file that is not what was written."""


def replace(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; when this returns it survives a power cut.

    Raises:
        OSError: it could not be written; what was there before is as it was.
    """
    new = temporary(path)
    try:
        with open(new, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except BaseException:
        with suppress(OSError):
            new.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def temporary(path: Path) -> Path:
    """Where a file is written before it takes its place."""
    return path.with_name(f".{path.name}.new")


def is_temporary(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".new")


def sync_folder(path: Path) -> None:
    """Put a folder's list of names on the disk: without it a power cut may forget a rename."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:  # some network file systems know no such thing; the file itself is whole either way
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(folder)


def canonical(value: Any) -> str:
    """JSON in which equal values are equal texts."""
    return json.dumps(value, sort_keys=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON with a checksum of itself."""
    sealed = {**content, "sha256": _seal(content)}
    replace(path, (json.dumps(sealed, indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote.

    Raises:
        DamagedError: it is no JSON, or not what was written.
    """
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise DamagedError(f"no JSON ({error})") from error
    if not isinstance(content, dict) or content.pop("sha256", None) != _seal(content):
        raise DamagedError("its checksum is wrong")
    return content


def _seal(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(content).encode()).hexdigest()


@contextmanager
def told(what: str, *then: str) -> Iterator[None]:
    """Turn what the system says of a file into a ScoreError.

    Args:
        what: could not be done, as in "the run folder 'x' cannot be made".
        then: further lines: what is safe, what to do.
    """
    try:
        yield
    except OSError as error:
        raise ScoreError("\n  ".join([f"{what}: {error.strerror or error}", *then])) from error
