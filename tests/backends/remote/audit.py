"""What is in the payloads that a test sends: recorded on their way out, and held against a list written down here."""

import io
import os
import pickle
import pickletools
import socket
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import zstandard

from lmm_lens.backends.nnsight.travel import imports_of

ALLOWED = {
    "builtins": {"ValueError", "classmethod", "object", "property", "staticmethod", "type"},
    "collections": {"OrderedDict"},
    "cloudpickle.cloudpickle": {"_builtin_type", "_class_setstate", "_make_skeleton_class", "subimport"},
    "nnsight.intervention.envoy": {"Envoy"},
    "nnsight.intervention.interleaver": {"Mediator"},
    "nnsight.intervention.iterator": {"Iterations"},
    "nnsight.intervention.serialization": {"_fill", "_load_function"},
    "nnsight.intervention.tracer": {"InterleavingTracer"},
    "nnsight.modeling.transformers": {"GeneratorEnvoy", "TransformersModel"}
    | {"TransformersModel._call", "TransformersModel.generate"},
    "nnsight.tracing.tracer": {"Tracer", "Tracer.Info"},
    "nnsight.tracing.util": {"SerializedFrame"},
    "torch": {"Tensor"},
    "torch._utils": {"_rebuild_tensor_v2"},
    "torch.storage": {"_load_from_bytes"},
}
"""Every global that a payload may ask a server for, by module."""

MODULES = {"torch", "nnsight"}
"""The modules that functions in a payload may refer to as a whole."""

TENSOR_GLOBALS = {
    ("torch.storage", "UntypedStorage"),
    *(("torch", f"{kind}Storage") for kind in ("Float", "Int", "Long", "Bool", "Byte", "Short")),
    ("collections", "OrderedDict"),
}

SECRET = "0123-my-own-secret-key-4567"


def is_source(path: str) -> bool:
    return path.endswith(".py") and Path(path).is_file()


def is_model(path: str) -> bool:
    """The folder that a lens was opened from."""
    return Path(path, "config.json").is_file()


def make_class(*args: Any) -> type:
    return type("Made", (Dummy,), {})


class Dummy:
    """Stands for whatever a payload makes."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Dummy":
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __call__(self, *args: Any, **kwargs: Any) -> "Dummy":
        return self

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, item: Any) -> None: ...

    def __hash__(self) -> int:
        return id(self)


@dataclass
class Payload:
    """One payload.

    Attributes:
        blob: as sent, compressed.
        plain: as pickled.
    """

    blob: bytes
    plain: bytes

    @classmethod
    def of(cls, blob: bytes) -> "Payload":
        return cls(blob, zstandard.ZstdDecompressor().decompress(blob))

    @cached_property
    def operations(self) -> list[tuple[str, object]]:
        return [(opcode.name, argument) for opcode, argument, _ in pickletools.genops(self.plain)]

    @cached_property
    def strings(self) -> list[str]:
        """Everything that is text in it: names, source, paths, values."""
        return [argument for _, argument in self.operations if isinstance(argument, str)]

    @property
    def sources(self) -> list[str]:
        """The source of functions and blocks."""
        return [text for text in self.strings if "\n" in text]

    @cached_property
    def paths(self) -> set[str]:
        """Absolute paths."""
        return {text for text in self.strings if text.startswith("/") and "\n" not in text}

    @cached_property
    def globals(self) -> set[tuple[str, str]]:
        return imports_of(self.plain)

    @property
    def inner(self) -> set[tuple[str, str]]:
        """The globals of tensors' storages, which are pickled on their own inside."""
        found = set()
        for name, argument in self.operations:
            if name.endswith("BYTES") and isinstance(argument, bytes):
                assert not zipfile.is_zipfile(io.BytesIO(argument))
                stream = io.BytesIO(argument)
                for _ in range(4):  # torch's magic number, protocol, system and storage
                    found |= imports_of(stream)  # type: ignore[arg-type]
        return found

    def loaded(self) -> tuple[set[tuple[str, str]], set[str]]:
        """What unpickling asks for, found by unpickling into dummies: globals, and modules as a whole."""
        asked, modules = set[tuple[str, str]](), set[str]()

        class Dummies(pickle.Unpickler):
            def find_class(self, module: str, name: str) -> Any:
                asked.add((module, name))
                if name == "subimport":
                    return modules.add
                return make_class if name in ("_make_skeleton_class", "_builtin_type") else Dummy

            def persistent_load(self, pid: Any) -> Any:
                return Dummy()

        Dummies(io.BytesIO(self.plain)).load()
        return asked, modules

    def check(self) -> None:
        """AssertionError for anything that has no business in a payload."""
        allowed = {(module, name) for module, names in ALLOWED.items() for name in names}
        asked, modules = self.loaded()
        assert asked <= allowed, f"not on the list: {sorted(asked - allowed)}"
        assert self.globals == asked | {(module, "") for module in modules}
        assert modules <= MODULES, f"not on the list: {sorted(modules - MODULES)}"
        assert self.inner <= TENSOR_GLOBALS, f"not on the list: {sorted(self.inner - TENSOR_GLOBALS)}"
        assert not {"CodeType", "FunctionType"} & set(self.strings), "code that is not source"
        assert self.sources, "no source at all"
        assert SECRET.encode() not in self.plain, "the SECRET key"
        others = {path for path in self.paths if not is_source(path) and not is_model(path)}
        assert not others, f"paths: {sorted(others)}"
        private = {socket.gethostname(), *(value for value in os.environ.values() if len(value) > 7)}
        assert not private & (set(self.strings) - self.paths), "something of this machine"
