"""Values in words that are the same in every process: numbers, settings, functions with what they close over.

`repr` gives an object's address, and of a long tensor a sample. Here every value counts, and functions are told apart
by their code and by the values that they use.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import types
from collections.abc import Mapping
from enum import Enum
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy
import torch
import xxhash
from torch import Tensor, nn

from .bytecode import names_in

LIBRARIES = frozenset(("torch", "transformers", "peft", "bitsandbytes", "torchao", "optimum", "accelerate", "lmm_lens"))
"""Packages whose code is told by name alone, since every version changes it; of other packages the version counts."""
DEPTH = 20
JSON = frozenset((str, int, bool, type(None)))


def text_of(value: Any, modules: Mapping[int, str] | None = None) -> str:
    """A value as a text that tells it from others: of objects the attributes count, of functions the code, the
    defaults and the variables from outside, of tensors every entry.

    Args:
        value: anything.
        modules: paths of the model's modules by id, which stand for them.

    Raises:
        ModelError: a tensor in it cannot be read.
    """
    return json.dumps(_Describer(modules or {}).of(value), sort_keys=True)


def digest_of_value(value: Any, modules: Mapping[int, str] | None = None) -> str:
    """A digest of such a text, 32 hexadecimal digits."""
    return xxhash.xxh3_128_hexdigest(text_of(value, modules).encode("utf-8", "surrogatepass"))


def module_of(thing: Any) -> str:
    """The module that a function or class is written in; what `functools.wraps` copies from another does not count."""
    written = thing.__globals__.get("__name__") if isinstance(thing, types.FunctionType) else None
    return str(written or getattr(thing, "__module__", None) or "")


def package_of(thing: Any) -> str:
    """The package that a function or class is written in."""
    return module_of(thing).partition(".")[0]


def name_of(thing: Any) -> str:
    """The package and the qualified name of a function or class; where in a package it stands changes with versions."""
    package = package_of(thing)
    name = f"{package}:{thing.__qualname__}"
    return f"{name} {_version(package)}" if package not in LIBRARIES and is_known(thing) else name


@lru_cache
def _version(package: str) -> str:
    if package in sys.stdlib_module_names or package == "builtins":
        return ""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # it is installed under another name
        return ""


def is_known(thing: Any) -> bool:
    """Whether a function or class is Python's or of an installed package, so that its name and version tell it."""
    package = package_of(thing)
    if package in LIBRARIES or package in sys.stdlib_module_names or package == "builtins":
        return package != "__main__"
    file = getattr(sys.modules.get(module_of(thing)), "__file__", None)
    return file is not None and not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts)


class _Describer:
    def __init__(self, modules: Mapping[int, str]) -> None:
        self.modules = modules
        self.met: dict[int, tuple[int, Any]] = {}  # objects and functions, numbered, and held so that ids stay theirs
        self.depth = 0

    def of(self, value: Any) -> Any:
        kind = type(value)
        if kind in JSON:
            return value
        if isinstance(value, Enum):
            return [name_of(kind), value.name]
        if value is None or isinstance(value, (bool, int, str)):
            return value
        if isinstance(value, (float, complex, bytes, range, slice, torch.dtype)):
            return [type(value).__name__, repr(value)]
        if isinstance(value, torch.device):
            return "device"  # not which: a model may be moved
        if isinstance(value, types.ModuleType):
            return value.__name__
        if id(value) in self.modules:
            return ["module", self.modules[id(value)]]
        if self.depth > DEPTH:  # lists in lists without end
            return name_of(type(value))
        self.depth += 1
        try:
            return self._contents(value)
        finally:
            self.depth -= 1

    def _contents(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            from .tensors import digest_of  # which describes what a tensor says of itself

            return ["tensor", "meta" if value.device.type == "meta" else digest_of(value)]
        if isinstance(value, (numpy.ndarray, numpy.generic)):
            values = value.tolist() if value.dtype.hasobject else xxhash.xxh3_128_hexdigest(value.tobytes())
            return ["array", str(value.dtype), list(value.shape), self.of(values)]
        if isinstance(value, Mapping):
            return {str(key): self.of(value[key]) for key in value}
        if isinstance(value, (list, tuple)):
            return [self.of(item) for item in value]
        if isinstance(value, (set, frozenset)):
            return sorted(json.dumps(self.of(item), sort_keys=True) for item in value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            held = {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
            return [name_of(type(value)), self.of(held)]
        if isinstance(value, functools.partial):
            return ["partial", *(self.of(part) for part in (value.func, value.args, value.keywords))]
        if isinstance(value, types.MethodType):
            return ["method", self.of(value.__func__), self.of(value.__self__)]
        if id(value) in self.met:
            return ["again", self.met[id(value)][0]]
        self.met[id(value)] = len(self.met), value
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, type):
            return self._class(value)
        if callable(value) and hasattr(value, "__qualname__") and hasattr(value, "__module__"):  # of C
            return name_of(value)
        if isinstance(value, nn.Module):
            held = {**value._parameters, **value._buffers, **value._modules}
            return [self._class(type(value)), self.of(held)]
        return [self._class(type(value)), {} if is_known(type(value)) else self.of(_attributes(value))]

    def _class(self, kind: type) -> Any:
        """A class by name, and the code of one that is no library's."""
        if is_known(kind):
            return name_of(kind)
        functions = {name: part for name, part in vars(kind).items() if isinstance(part, types.FunctionType)}
        return [name_of(kind), self.of(functions), [self.of(base) for base in kind.__bases__ if base is not object]]

    def _function(self, function: types.FunctionType) -> Any:
        closed = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        outside = {name: _content(cell) for name, cell in closed}
        if is_known(function):
            return [name_of(function), self.of(outside)]
        taken = names_in(function.__code__).globals & function.__globals__.keys()
        outside |= {name: function.__globals__[name] for name in taken}
        defaults = function.__defaults__, function.__kwdefaults__
        return [name_of(function), _code(function.__code__), self.of(defaults), self.of(dict(sorted(outside.items())))]


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not bound yet
        return None


def _attributes(value: Any) -> dict[str, Any]:
    """The attributes of an object, those in slots too."""
    held = dict(getattr(value, "__dict__", {}))
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                held[name] = getattr(value, name)
    return dict(sorted(held.items()))


def _code(code: types.CodeType) -> Any:
    """A function's instructions and constants, without where they stand in a file."""
    constants = [
        _code(value) if isinstance(value, types.CodeType)
        # the order of a set's members is another one in each process
        else sorted(map(repr, value)) if isinstance(value, frozenset)
        else repr(value)
        for value in code.co_consts
    ]  # fmt: skip
    return [code.co_code.hex(), constants, list(code.co_names), list(code.co_varnames)]
