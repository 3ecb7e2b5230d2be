"""Code that acts on a model and is not its library's: own classes, replaced methods and functions, hooks."""

from __future__ import annotations

import functools
import sys
import types
from typing import Any

import torch
from torch import nn

from .modules import Part, own_class
from .remembered import Remembered
from .values import LIBRARIES, is_known, module_of, name_of, package_of

PLACING = ("accelerate", "nnsight", "transformers.distributed", "torch.distributed", "torch._dynamo")
"""Modules whose forwards and hooks only say where a model computes, or how."""
LOOKING_ON = ("transformers", "lmm_lens.backends", "lmm_lens.replay", "lmm_lens.sinks", "lmm_lens.checks")
"""Modules whose hooks only look on, or, ours, stand for as long as a call of the lens."""
MODELS = ("transformers.models.", "torch.nn.")
"""Modules that import nothing from beyond `LIBRARIES`, so that what is there from elsewhere was put there."""
NOT_FORWARD = {"extra_repr", "_compiled_call_impl"}
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def code_of(parts: list[Part]) -> dict[str, Any]:
    """The functions that run and are not what a library has there, by where they stand."""
    found: dict[str, Any] = {}
    for part in parts:
        replaced = {} if part.is_wrapper else _replaced_in(part)
        found |= {f"{part.path}.{name}": function for name, function in replaced.items()}
    kinds = {type(part.module) for part in parts}
    classes = {base for kind in kinds for base in own_class(kind).__mro__} - set(nn.Module.__mro__)
    for kind in classes:
        found |= foreign_in_class(kind)
    for source in {kind.__module__ for kind in classes if kind.__module__.startswith(MODELS)}:
        found |= foreign_in_module(sys.modules[source])
    return found


def _foreign_in_class(kind: type) -> dict[str, Any]:
    functions = ((name, _function_of(value)) for name, value in vars(kind).items())
    return {
        f"{name_of(kind)}.{name}": function
        for name, function in functions
        if function is not None and not (is_known(kind) and _is_own(function, kind))
    }


def _foreign_in_module(source: types.ModuleType) -> dict[str, Any]:
    usual = LIBRARIES | sys.stdlib_module_names
    return {
        f"{source.__name__}.{name}": value
        for name, value in vars(source).items()
        if isinstance(value, types.FunctionType) and package_of(value) not in usual
    }


foreign_in_class = Remembered(_foreign_in_class, lambda kind: [vars(kind)])
"""The functions of a class that are not its library's own."""
foreign_in_module = Remembered(_foreign_in_module, lambda source: [vars(source)])
"""The functions in a module of models that are from beyond the libraries."""


def _is_own(function: types.FunctionType, kind: type) -> bool:
    """Whether a library's class has a method from itself or from what it inherits."""
    owners = {base.__qualname__ for base in kind.__mro__}
    return is_known(function) and function.__qualname__.rpartition(".")[0] in owners


def _replaced_in(part: Part) -> dict[str, Any]:
    """The functions that a module itself has in place of its class's."""
    found: dict[str, Any] = {}
    for name, value in part.unusual:
        if not callable(value) and not isinstance(value, (property, staticmethod, classmethod)):
            continue
        if name == "forward" and _origin(value).startswith("nnsight"):  # which keeps what it has replaced
            value = getattr(getattr(value, "state", None), "body", value)
        value = getattr(value, "_torchdynamo_orig_callable", value)
        name = "forward" if name == "_old_forward" else name  # accelerate's name for what it has replaced
        function = _function_of(value)
        own = [_function_of(vars(base)[name]) for base in type(part.module).__mro__ if name in vars(base)]
        is_code = function is not None or (name == "forward" and callable(value))
        is_own = function is not None and any(function is other for other in own)
        if is_code and not is_own and name not in NOT_FORWARD and not _origin(value).startswith(PLACING):
            found[name] = value
    return found


def _function_of(value: Any) -> types.FunctionType | None:
    value = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
    return value if isinstance(value, types.FunctionType) else None


def _origin(function: Any) -> str:
    """The module that a function, a method, or a callable object comes from."""
    while isinstance(function, functools.partial):
        function = function.func
    function = getattr(function, "__func__", function)
    return module_of(function if isinstance(function, types.FunctionType) else type(function))


def hooks_of(parts: list[Part]) -> list[Any]:
    """Every hook that stands on the model: its kind, the path of its module, and the hook."""
    everywhere = vars(torch.nn.modules.module)
    places = [("every module", kind, everywhere.get(f"_global{kind}")) for kind in HOOKS]
    places += [(part.path, kind, vars(part.module).get(kind)) for part in parts for kind in HOOKS]
    return [
        [kind, path, hook]
        for path, kind, hooks in places
        for hook in (hooks or {}).values()
        if not _origin(hook).startswith(PLACING + LOOKING_ON)
    ]
