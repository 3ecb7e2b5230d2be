"""Read the pickle inside a server's answer without letting it name a function of this computer.

A pickle is a program: what it names is imported and called. So names are looked up in a table of what answers consist
of, never imported, and the table's entries build plain values of ours. Everything else is refused by name.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .travel import imports_of

OPERATIONS = frozenset(
    """
    PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT
    BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8
    EMPTY_LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT SETITEM SETITEMS
    EMPTY_SET ADDITEMS FROZENSET GLOBAL STACK_GLOBAL REDUCE BINPERSID
    BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET
    """.split()  # noqa: SIM905  (fifty names in as many lines would be no clearer)
)
"""What pickles of values are made of. Not among them is what sets attributes of objects (BUILD), makes instances
(NEWOBJ, OBJ, INST) or takes what an earlier pickle left in this process (EXT1, EXT2, EXT4)."""

MOST_OPERATIONS = 5_000_000  # some seconds, and some hundred megabytes

STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}


class UnwantedError(Exception):
    """An answer asks for something that results have no need of."""


@dataclass(frozen=True)
class StorageKind:
    """The dtype of a storage; it is uint8 where the storage is untyped."""

    dtype: torch.dtype


@dataclass(frozen=True)
class Stored:
    """Where the numbers of a tensor lie: a record of the archive, and what they are."""

    record: str
    dtype: torch.dtype
    n_bytes: int


@dataclass(frozen=True)
class Sketch:
    """A tensor as the pickle describes it; nothing of it is checked yet."""

    stored: Any
    offset: Any
    size: Any
    stride: Any
    dtype: torch.dtype
    requires_grad: bool = False


def _tensor(
    stored: Stored, offset: int, size: Any, stride: Any, requires_grad: bool, hooks: Any, bits: Any = None
) -> Sketch:
    if bits:
        raise UnwantedError("a tensor that is a conjugate or a negative view")
    return Sketch(stored, offset, size, stride, stored.dtype, requires_grad is True)


def _tensor_of_dtype(
    stored: Stored, offset: int, size: Any, stride: Any, requires_grad: bool, hooks: Any, dtype: Any, bits: Any = None
) -> Sketch:
    if bits or not isinstance(dtype, torch.dtype):
        raise UnwantedError("a tensor that is no plain one")
    return Sketch(stored, offset, size, stride, dtype, requires_grad is True)


def _parameter(data: Sketch, requires_grad: bool, hooks: Any) -> Sketch:
    return Sketch(data.stored, data.offset, data.size, data.stride, data.dtype, requires_grad is True)


def _bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise UnwantedError(f"the codec {encoding!r}")
    return text.encode("latin1")


def _ordered(pairs: Sequence[Any] = ()) -> OrderedDict[Any, Any]:
    return OrderedDict(pairs)


def _status(name: str) -> str:
    return str(name)


def _size(numbers: Any) -> torch.Size:
    return torch.Size(tuple(numbers))


def _device(kind: str, index: int | None = None) -> torch.device:
    return torch.device(kind) if index is None else torch.device(kind, index)


def _complex(real: float, imaginary: float) -> complex:
    return complex(real, imaginary)


def _set(items: list[Any]) -> set[Any]:
    return set(items)


def _frozen_set(items: list[Any]) -> frozenset[Any]:
    return frozenset(items)


def _slice(*ends: int | None) -> slice:
    return slice(*ends)


TABLE: dict[tuple[str, str], Callable[..., Any] | StorageKind | torch.dtype] = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_of_dtype,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch", "Size"): _size,
    ("torch", "device"): _device,
    ("collections", "OrderedDict"): _ordered,
    ("nnsight.schema.response", "Status"): _status,
    ("_codecs", "encode"): _bytes,
    **{("torch", name): StorageKind(dtype) for name, dtype in STORAGES.items()},
    ("torch.storage", "UntypedStorage"): StorageKind(torch.uint8),
    **{("torch", name): value for name, value in vars(torch).items() if isinstance(value, torch.dtype)},
    **{
        (module, name): made
        for module in ("builtins", "__builtin__")  # the second is what the older protocol calls it
        for name, made in (("complex", _complex), ("set", _set), ("frozenset", _frozen_set), ("slice", _slice))
    },
}
"""What an answer may name, and what stands for it here. Honest servers need the tensors, their storages, `OrderedDict`
(for the hooks that a tensor could have) and nnsight's `Status`; the rest is what users save in traces of their own."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = TABLE.get((module, name))
        if found is None:
            raise UnwantedError(f"{module}.{name}")
        return found

    def persistent_load(self, given: Any) -> Stored:
        """A storage, as torch.save refers to it: by kind, record, device and number of elements."""
        match given:
            case ("storage", StorageKind(dtype=dtype), str() as record, str(), int() as numel) if numel >= 0:
                return Stored(record, dtype, numel * dtype.itemsize)
        raise UnwantedError("a persistent object that is no storage")


def _others(program: bytes) -> str:
    """The names in a program that are not in the table, to be told beside an operation that is refused."""
    try:
        others = sorted(imports_of(program) - TABLE.keys())
    except (ValueError, IndexError):  # it is no pickle further on
        return ""
    names = [f"{module}.{name}".rstrip(".") for module, name in others[:3]]
    return f"{', '.join(names)} with" if names else ""


def unpickled(program: bytes) -> Any:
    """The value of a pickle, its tensors as sketches.

    Raises:
        UnwantedError: it asks for anything beyond the table, or works with operations that values do not need.
    """
    for n, (operation, argument, _) in enumerate(pickletools.genops(program), 1):
        if operation.name not in OPERATIONS:
            raise UnwantedError(f"{_others(program)} the pickle operation {operation.name}".strip())
        if operation.name == "LONG_BINPUT" and int(argument or 0) > n:  # a large index alone takes as much memory
            raise UnwantedError(f"a memo of {argument} entries")
        if n > MOST_OPERATIONS:
            raise UnwantedError(f"more than {MOST_OPERATIONS:,} values outside of tensors")
    return _Unpickler(io.BytesIO(program)).load()
