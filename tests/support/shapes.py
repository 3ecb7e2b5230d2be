"""Shape annotations checked at run time, in every function, method and dataclass of the library that has one.

Once a module is imported, whatever in it names shapes (`Float[Tensor, "batch head query key"]`) is put into jaxtyping's
wrapper, with beartype behind it. Annotations without shapes are left alone: what users give wrongly must meet the
library's own errors. (jaxtyping's import hook wraps all, functions inside functions too, which are made anew for every
layer and must have source to travel.)

Jobs for a server travel as source: a pickler that meets a checked function sends what is inside the wrapper.
"""

from __future__ import annotations

import builtins
import sys
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import FunctionType, ModuleType
from typing import Any

import jaxtyping
import numpy
import torch
from beartype import beartype

LIBRARY, PICKLER = "lmm_lens", "nnsight.intervention.serialization"
KINDS = {kind.__name__: kind for kind in vars(jaxtyping).values() if isinstance(kind, type(jaxtyping.AbstractDtype))}
"""jaxtyping's types of arrays by name: Float, Int, ..."""
CHECKED: dict[FunctionType, FunctionType] = {}
"""Every wrapper that was made, and what is inside."""


def install() -> None:
    """Check what is imported from now on."""
    assert not any(name.partition(".")[0] == LIBRARY for name in sys.modules), "the library was imported before"
    sys.meta_path.insert(0, Finder())


class Finder(MetaPathFinder):
    """Finds modules as the other finders do, and has them changed once they are there."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name.partition(".")[0] != LIBRARY and name != PICKLER:
            return None
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = Loader(spec.loader.name, spec.loader.path)
        return spec


class Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        (send_unchecked if module.__name__ == PICKLER else check_module)(module)


def send_unchecked(pickler: ModuleType) -> None:
    """Let nnsight pickle what is inside a wrapper."""
    cls = pickler.CustomCloudPickler
    reduce = cls.reducer_override
    cls.reducer_override = lambda self, value: reduce(
        self, CHECKED.get(value, value) if isinstance(value, FunctionType) else value
    )


def check_module(module: ModuleType) -> None:
    """Check all functions and classes that are written in a module."""
    for name, value in list(vars(module).items()):
        if getattr(value, "__module__", None) != module.__name__:
            continue
        if isinstance(value, FunctionType):
            setattr(module, name, checked(value, module))
        elif isinstance(value, type) and not getattr(value, "_is_protocol", False):
            check_class(value, module)


def check_class(cls: type, module: ModuleType) -> None:
    """Check the methods and properties of a class, and with a dataclass or a named tuple what it is made of."""
    for name, value in list(vars(cls).items()):
        if isinstance(value, FunctionType):
            new: Any = checked(value, module)
            if name == "__new__":
                new = staticmethod(new)
        elif isinstance(value, (classmethod, staticmethod)):
            new = type(value)(checked(value.__func__, module))
        elif isinstance(value, property):
            new = property(value.fget and checked(value.fget, module), value.fset, value.fdel, value.__doc__)
        elif isinstance(value, cached_property):
            value.func = checked(value.func, module)
            continue
        else:
            continue
        setattr(cls, name, new)


def checked(function: Any, module: ModuleType) -> Any:
    """A function in a wrapper that checks its shapes; itself where it names none."""
    all_hints = getattr(function, "__annotations__", {})
    hints = {name: hint for name, hint in resolved(all_hints, function, module).items() if has_shape(hint)}
    if not hints:
        return function
    function.__annotations__ = hints
    try:
        wrapper = jaxtyping.jaxtyped(function, typechecker=beartype)
    finally:
        function.__annotations__ = all_hints
    wrapper.__annotations__ = all_hints
    CHECKED[wrapper] = function
    return wrapper


@contextmanager
def unchecked(cls: type) -> Iterator[None]:
    """Make objects of a class as users do, whose wrong arrays must meet the library's own errors."""
    wrapper = cls.__init__
    cls.__init__ = CHECKED[wrapper]  # type: ignore[misc]
    try:
        yield
    finally:
        cls.__init__ = wrapper  # type: ignore[misc]


def resolved(hints: dict[str, Any], function: Any, module: ModuleType) -> dict[str, Any]:
    """Annotations as types, those left out that can be none at run time and name no shapes."""
    found = {}
    for name, hint in hints.items():
        text = hint.__forward_arg__ if isinstance(hint, typing.ForwardRef) else hint
        try:
            found[name] = eval(text, {}, Names(vars(module))) if isinstance(text, str) else hint
        except (AttributeError, TypeError):  # asked of what stands for anything
            if any(f"{kind}[" in text for kind in KINDS):
                raise TypeError(f"{function.__qualname__} of {module.__name__}: {name}: {text} is unchecked") from None
    return found


class Names(dict[str, Any]):
    """The names that a module's annotations may use; those it imports for type checkers alone stand for anything."""

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name):
            return getattr(builtins, name)
        arrays = {"Tensor": torch.Tensor, "np": numpy, "numpy": numpy}
        return arrays.get(name) or KINDS.get(name, Any)


def has_shape(hint: Any) -> bool:
    """Whether a type names shapes, however deep."""
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    inside = hint if isinstance(hint, list) else typing.get_args(hint)
    return any(map(has_shape, inside))
