"""What a shipped block may touch.

As in ndif 0.1.2, the process that runs a block has no model: every module is None, so weights and config are out of
reach, and what a block reads crosses a socket. It gets a copy, which is written back when the block moves on; among the
arguments of a layer that is a copy of the cache.

A strict service is two generations of NDIF in one: it also has the import lists of the older one, and neither nested
sources nor `source.names`.
"""

import builtins
import importlib
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from nnsight.intervention import serialization
from nnsight.intervention.envoy import Envoy
from nnsight.intervention.interleaver import Event, Mediator, Pending
from nnsight.intervention.source import Source, SourceEnvoy

RUNNING = frozenset(
    [
        "torch",
        "numpy",
        "collections",
        "math",
        "typing",
        "einops",
        "operator",
        "_operator",
        "enum",
        "time",
        "builtins",
        "__future__",
    ]
)
LOADING = RUNNING | frozenset(
    ["pickle", "cloudpickle", "copyreg", "nnsight", "transformers", "tokenizers", "huggingface_hub"]
)
FORBIDDEN_BUILTINS = frozenset(["open", "exec", "compile", "input", "breakpoint", "__import__"])


def refuse(name: str) -> NoReturn:
    raise ModuleNotFoundError(f"No module named {name.split('.')[0]!r} on this server, which was asked for {name}")


class Unpickler(serialization.CustomCloudUnpickler):
    """Refuses every global outside the list, if it is strict, and writes down those it was asked for."""

    strict = True
    seen: set[str] = set()  # noqa: RUF012  (one job at a time; nnsight constructs the unpickler itself)

    def find_class(self, module: str, name: str) -> Any:
        asked = f"{module}.{name}"
        self.seen.add(asked)
        if not self.strict:
            return super().find_class(module, name)
        if module.split(".")[0] not in LOADING:
            refuse(asked)
        if module == "builtins" and name in FORBIDDEN_BUILTINS:
            refuse(asked)
        if name == "subimport":  # how cloudpickle writes a module that a function refers to
            return self.module
        return super().find_class(module, name)

    def module(self, name: str) -> Any:
        self.seen.add(name)
        if name.split(".")[0] not in LOADING:
            refuse(name)
        return importlib.import_module(name)


def guarded_import(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
    if name.split(".")[0] not in RUNNING:
        refuse(name)
    return builtins.__import__(name, globals, locals, fromlist, level)


BUILTINS = {name: value for name, value in vars(builtins).items() if name not in FORBIDDEN_BUILTINS}
BUILTINS["__import__"] = guarded_import


def _shipped(depth: int = 2) -> bool:
    """Whether a block or function that came over the wire is asking: only those have no __name__."""
    return sys._getframe(depth).f_globals.get("__name__") is None


def copies_are_written_back() -> None:
    """What a block reads is a copy, and is put in the place of what was read as soon as the block moves on."""
    resume = Mediator.switch

    def switch(self: Mediator, *given: Any) -> Any:
        if not given and "moved_on_to" in vars(self):
            return vars(self).pop("moved_on_to")
        read = self.pending
        if not given or read is None or read.event is not Event.VALUE or read.provider.endswith(".fn"):
            return resume(self, *given)
        copy = across_a_socket(given[0])
        vars(self)["moved_on_to"] = resume(self, copy)
        return Pending(Event.SWAP, read.provider, read.iteration, copy)

    Mediator.switch = switch


def across_a_socket(value: Any) -> Any:
    """As it is packed and unpacked there; functions, which nnsight serves to look into, are not."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def without_a_model(strict: bool) -> None:
    """Hide from shipped code what the process that runs it on NDIF does not have."""
    names, every, nested, attribute = Source.names, Source.__iter__, SourceEnvoy.source, Envoy.__getattr__

    def hidden_names(self: Source) -> Any:
        if _shipped():
            raise AttributeError("names")  # nnsight then says that there is no such operation
        return names.fget(self)

    def hidden_iteration(self: Source) -> Any:
        if _shipped():
            raise TypeError(f"{self.prefix!r} cannot be iterated in this process")
        return every(self)

    def hidden_nested(self: SourceEnvoy) -> Any:
        if _shipped():
            raise AttributeError("a source inside a source needs the module, which is not in this process")
        return nested.fget(self)

    def hidden_module(self: Envoy) -> Any:
        return None if _shipped() else self.__dict__["_module"]

    def hidden_attribute(self: Envoy, name: str) -> Any:
        if _shipped():
            raise AttributeError(f"'NoneType' object has no attribute {name!r} ({self.path}: no model in this process)")
        return attribute(self, name)

    if strict:
        Source.names, Source.__iter__ = property(hidden_names), hidden_iteration
        SourceEnvoy.source = property(hidden_nested)
    Envoy._module = property(hidden_module, lambda self, module: self.__dict__.__setitem__("_module", module))
    Envoy.__getattr__ = hidden_attribute


@contextmanager
def recorded() -> Iterator[set[str]]:
    """The globals that the payload loaded inside asks for."""
    Unpickler.seen = set()
    if Unpickler.strict:
        serialization.__builtins__ = BUILTINS  # what shipped functions are given
    yield Unpickler.seen
