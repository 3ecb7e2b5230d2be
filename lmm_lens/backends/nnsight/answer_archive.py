"""Read what `torch.save` wrote on a server: a zip archive of a pickle and of the numbers of its tensors.

`torch.load` would run what the pickle names, unpack compressed records without a bound, and believe what it is told of
the sizes of storages. Here the pickle is read by `answer_pickle`, and every tensor is held against the bytes that came.
"""

from __future__ import annotations

import io
import math
import re
import sys
import zipfile
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from .answer_pickle import Sketch, Stored, UnwantedError, unpickled
from .limits import too_large

MOST_RECORDS = 100_000
DEEPEST = 100
LEAVES = (bool, int, float, complex, str, bytes, slice, torch.dtype, torch.device, torch.Size, type(None))


def read_archive(content: bytes, limit: int) -> Any:
    """The value that was saved, its tensors on the CPU.

    Args:
        content: the bytes of the archive.
        limit: how many bytes its tensors may have together.

    Raises:
        UnwantedError: it asks for something that no result needs, or is not what `torch.save` writes.
        RemoteError: its tensors are larger than the limit.
    """
    if not content.startswith(b"PK\x03\x04"):
        raise UnwantedError("a form that torch.save does not write")
    if content.count(b"PK\x01\x02") > MOST_RECORDS:  # before a list of them is made
        raise UnwantedError(f"more than {MOST_RECORDS:,} records")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        records = {info.filename: info for info in archive.infolist()}
        if any(info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 for info in records.values()):
            raise UnwantedError("compressed records")  # a bomb; torch.save stores them as they are
        if sum(info.file_size for info in records.values()) > len(content):
            raise UnwantedError("records that overlap")
        pickles = [name for name in records if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(pickles) != 1:
            raise UnwantedError(f"{len(pickles)} pickles in one archive")
        root = pickles[0].partition("/")[0]
        if f"{root}/byteorder" in records and archive.read(f"{root}/byteorder") != sys.byteorder.encode():
            raise UnwantedError("numbers in another byte order")
        return _Builder(archive, root, limit).value(unpickled(archive.read(pickles[0])))


class _Builder:
    """Makes tensors of their sketches, and looks at every value on the way."""

    def __init__(self, archive: zipfile.ZipFile, root: str, limit: int) -> None:
        self.archive, self.root, self.limit, self.n_bytes = archive, root, limit, 0
        self.storages: dict[str, Tensor] = {}
        self.made: dict[int, Any] = {}  # by identity: what is named twice is made once

    def value(self, found: Any, depth: int = 0) -> Any:
        if isinstance(found, LEAVES):
            return found
        if depth > DEEPEST:
            raise UnwantedError(f"values nested deeper than {DEEPEST}")
        if id(found) not in self.made:
            self.made[id(found)] = self._made(found, depth + 1)
        return self.made[id(found)]

    def _made(self, found: Any, depth: int) -> Any:
        if isinstance(found, Sketch):
            return self.tensor(found)
        if isinstance(found, (list, tuple)):
            return type(found)(self.value(each, depth) for each in found)
        if isinstance(found, dict):
            kind = OrderedDict if isinstance(found, OrderedDict) else dict
            return kind((self.value(key, depth), self.value(each, depth)) for key, each in found.items())
        if isinstance(found, (set, frozenset)):
            return type(found)(self.value(each, depth) for each in found)
        raise UnwantedError(f"a bare {getattr(found, '__name__', type(found).__name__).strip('_')}")

    def tensor(self, sketch: Sketch) -> Tensor:
        if not isinstance(sketch.stored, Stored):
            raise UnwantedError("a tensor without a storage")
        size, stride, offset = _counts(sketch.size), _counts(sketch.stride), _counts((sketch.offset,))[0]
        if len(size) != len(stride) or len(size) > 64:
            raise UnwantedError("a tensor whose strides do not go with its size")
        data = self.storage(sketch.stored)
        if data.numel() % sketch.dtype.itemsize:
            raise UnwantedError("a storage that is no whole number of elements")
        empty = 0 in size
        last = offset if empty else offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1
        if last > data.numel() // sketch.dtype.itemsize:
            raise UnwantedError("a tensor that reaches beyond its storage")
        numel = 0 if empty else math.prod(size)
        self.n_bytes += numel * sketch.dtype.itemsize  # as it is once somebody computes with it: a stride may be 0
        if self.n_bytes > self.limit:
            raise too_large(self.limit)
        elements = data != 0 if sketch.dtype is torch.bool else data.view(sketch.dtype)  # a bool byte is 0 or 1
        made = elements.as_strided(size, stride, offset)
        return made.requires_grad_(sketch.requires_grad and made.dtype.is_floating_point)

    def storage(self, stored: Stored) -> Tensor:
        """Uint8[byte]: a record, which must have the size that the pickle says."""
        if stored.record not in self.storages:
            if not stored.record.isdecimal():
                raise UnwantedError(f"the record {stored.record[:100]!r}")
            try:
                info = self.archive.getinfo(f"{self.root}/data/{stored.record}")
            except KeyError:
                raise UnwantedError(f"a record {stored.record} that is not there") from None
            read = bytearray(self.archive.read(info))
            self.storages[stored.record] = torch.frombuffer(read, dtype=torch.uint8) if read else torch.empty(0).byte()
        data = self.storages[stored.record]
        if data.numel() != stored.n_bytes:
            raise UnwantedError(f"a storage of {stored.n_bytes} bytes, where {data.numel()} came")
        return data


def _counts(given: Any) -> tuple[int, ...]:
    """Sizes, strides or offsets, none of which is negative or beyond what a tensor can have."""
    if not isinstance(given, tuple) or not all(type(n) is int and 0 <= n < 2**62 for n in given):
        raise UnwantedError("a tensor with a size that is none")
    return given
