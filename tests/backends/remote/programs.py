"""Pickles that would run something, if a client unpickled them: each would leave a file behind."""

import io
import os
import pickle
import struct
import subprocess
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import cloudpickle
import torch


class Calls:
    """Unpickled, it calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class Pretends(dict):
    """A dict of a class of its own, with what it calls as an item."""

    def __init__(self, item: Calls | None = None) -> None:
        self.item = item

    def __reduce__(self) -> Any:
        return Pretends, (), None, None, iter([("key", self.item)])


def dumped(value: Any, protocol: int = 4) -> bytes:
    """The body of a program that leaves a value on the stack."""
    program = pickle.dumps(value, protocol)
    return program[2:-1] if protocol < 4 else program[11:-1]  # without the protocol, the frame and the STOP


def text(string: str) -> bytes:
    return b"X" + struct.pack("<I", len(string.encode())) + string.encode()


def tensor(
    *,
    size: bytes = b"K\x02\x85",
    stride: bytes = b"K\x01\x85",
    offset: bytes = b"K\0",
    numel: bytes = b"K\x02",
    hooks: bytes = b"ccollections\nOrderedDict\n)R",
) -> bytes:
    """The body that rebuilds a float tensor of two elements, which may lie about itself."""
    return b"".join(
        [
            b"ctorch._utils\n_rebuild_tensor_v2\n((",
            text("storage"),
            b"ctorch\nFloatStorage\n",
            text("0") + text("cpu") + numel,
            b"tQ",
            offset + size + stride,
            b"\x89" + hooks + b"tR",
        ]
    )


def programs(file: str) -> Iterator[tuple[str, bytes]]:
    """The bodies of programs that would leave a file behind, each under what it asks for."""
    touch, opening = f"touch {file}", f"open({file!r}, 'w').close()"
    yield "posix.system", dumped(Calls(os.system, touch))
    yield "builtins.eval", dumped(Calls(eval, opening))
    yield "builtins.exec", dumped(Calls(exec, opening))
    yield "io.open", dumped(Calls(open, file, "w"))
    yield "subprocess.Popen", dumped(Calls(subprocess.Popen, ["touch", file]))
    yield "builtins.getattr", dumped(Calls(getattr, Calls(__import__, "os"), "system"))
    yield "__builtin__.eval", dumped(Calls(eval, opening), 2)  # as the older protocol names it
    inside = pickle.dumps(Calls(os.system, touch), 2)
    yield "torch.storage._load_from_bytes", dumped(Calls(torch.storage._load_from_bytes, inside))
    yield "torch.serialization.load", dumped(Calls(torch.load, file))
    yield (
        "torch._tensor._rebuild_from_type_v2",
        b"ctorch._tensor\n_rebuild_from_type_v2\n(cposix\nsystem\n" + (text(touch) + b"tR"),
    )
    yield "torch.utils.collect_env.run", b"ctorch.utils.collect_env\nrun\n" + text(touch) + b"\x85R"
    yield (
        "numpy._core.multiarray._reconstruct",
        (b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0\x85C\x01btR"),
    )
    yield "numpy.core.multiarray.scalar", b"cnumpy.core.multiarray\nscalar\n)R"
    yield "cloudpickle.cloudpickle._builtin_type", cloudpickle.dumps(lambda: os.system(touch), 4)[11:-1]
    yield (
        "nnsight.intervention.serialization._load_function",
        (b"cnnsight.intervention.serialization\n_load_function\n" + text(opening) + b"\x85R"),
    )
    yield "posix.system (old)", b"cposix\nsystem\n" + text(touch) + b"\x85R"
    yield "posix.system (stacked)", b"\x8c\x05posix\x8c\x06system\x93" + text(touch) + b"\x85R"
    yield "posix.system (remembered)", b"\x8c\x05posix\x94\x8c\x06system\x94h\0h\x01\x93" + text(touch) + b"\x85R"
    yield "torch.Tensor.__setstate__", b"ctorch\nTensor.__setstate__\n)R"
    yield "posix.system with the pickle operation INST", b"(" + text(touch) + b"iposix\nsystem\n"
    yield "posix.system with the pickle operation OBJ", b"(cposix\nsystem\n" + text(touch) + b"o"
    yield "subprocess.Popen with the pickle operation NEWOBJ", b"csubprocess\nPopen\n" + text(touch) + b"\x85\x81"
    yield "subprocess.Popen with the pickle operation NEWOBJ_EX", b"csubprocess\nPopen\n" + text(touch) + b"\x85}\x92"
    yield "BUILD", b"ccollections\nOrderedDict\n)R}" + text("__class__") + text(opening) + b"sb"
    yield "EXT1", b"\x82\x01"
    yield "EXT2", b"\x83\x01\0"
    yield "EXT4", b"\x84\x01\0\0\0"
    yield "PERSID", b"Pposix.system\n"
    yield "posix.system (in a persistent object)", b"(" + text("module") + b"cposix\nsystem\n" + text(touch) + b"tQ"
    yield "Pretends", dumped(Pretends(Calls(os.system, touch)))
    hook = b"cposix\nsystem\n" + text(touch) + b"\x85R"
    yield "posix.system (in the hooks of a tensor)", tensor(hooks=hook)


NAMES = [name for name, _ in programs("")]


def archive(records: Mapping[str, bytes], compressed: bool = False) -> bytes:
    """As `torch.save` would write it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as file:
        for name, content in records.items():
            file.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def named(body: bytes, name: str = "answers") -> bytes:
    """A whole program: a dict with one name."""
    return b"\x80\x04}" + text(name) + body + b"s."


LIES: dict[str, tuple[Callable[[], dict[str, bytes]], str]] = {
    "reaches": (lambda: {"data.pkl": named(tensor(size=b"M\xff\xff\x85"))}, "a tensor that reaches beyond its storage"),
    "offset": (lambda: {"data.pkl": named(tensor(offset=b"K\x09"))}, "a tensor that reaches beyond its storage"),
    "negative": (lambda: {"data.pkl": named(tensor(offset=b"J\xff\xff\xff\xff"))}, "a tensor with a size that is none"),
    "storage": (
        lambda: {"data.pkl": named(tensor(numel=b"J\xff\xff\xff\x7f"))},
        "a storage of 8589934588 bytes, where 8 came",
    ),
    "nested": (lambda: {"data.pkl": named(b"]" * 5000 + b"a" * 4999)}, "values nested deeper than 100"),
    "itself": (lambda: {"data.pkl": named(b"]\x94h\0a")}, "values nested deeper than 100"),
    "memo": (lambda: {"data.pkl": named(b"Nr\xff\xff\xff\x7f")}, "a memo of 2147483647 entries"),
    "missing": (lambda: {"data.pkl": named(tensor().replace(text("0"), text("7")))}, "a record 7 that is not there"),
    "path": (lambda: {"data.pkl": named(tensor().replace(text("0"), text("../x")))}, "the record '../x'"),
    "order": (lambda: {"data.pkl": named(tensor()), "byteorder": b"big"}, "numbers in another byte order"),
    "none": (lambda: {"code/constants.pkl": b"."}, "0 pickles in one archive"),
}
"""Archives that lie, and what they are refused for."""
