"""What may go to a server: source of `lmm_lens.core`, plain values, and nothing that the server would have to import.

nnsight sends functions of an installed package by name, which a server without that package cannot resolve. Inside
`by_source` those of the core go by source. The registration is taken back afterwards, so that others who pickle with
cloudpickle, Ray for one, are not affected.
"""

from __future__ import annotations

import copyreg
import importlib
import pickletools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from ...core.trace import TracePrompt
from ...errors import RemoteError
from ...prompts.prompt import Prompt
from ..sources import READING, read_once

SENT = ("lmm_lens.core", "lmm_lens.errors")
SUBIMPORT = ("cloudpickle.cloudpickle", "subimport")  # imports the module that its argument names
MODULE = "\0 imports a module"
TRAVELLING: ContextVar[bool] = ContextVar("travelling", default=False)
_models: ContextVar[list[Any] | None] = ContextVar("models of what is being packed", default=None)


def _reduce_prompt(prompt: Prompt) -> Any:
    """On its way to a server a prompt is its masks; else it is pickled as any object."""
    return (TracePrompt, (dict(prompt.masks),)) if TRAVELLING.get() else prompt.__reduce_ex__(4)


copyreg.pickle(Prompt, _reduce_prompt)


@contextmanager
def by_source() -> Iterator[None]:
    """Inside, what is pickled is meant for a server; one thread at a time, since it is known to the whole process."""
    from cloudpickle import register_pickle_by_value, unregister_pickle_by_value
    from cloudpickle.cloudpickle import list_registry_pickle_by_value

    with READING, read_once():  # what is pickled by source is also read and parsed
        modules = [importlib.import_module(name) for name in SENT if name not in list_registry_pickle_by_value()]
        for module in modules:
            register_pickle_by_value(module)
        token, met = TRAVELLING.set(True), _models.set([])
        try:
            yield
        finally:
            TRAVELLING.reset(token)
            _models.reset(met)
            for module in modules:
                unregister_pickle_by_value(module)


def check_one_model(envoy: Any) -> None:
    """A lens on this model is being packed.

    Raises:
        RemoteError: so was one on another. On a server both would be the model of the job: modules go by their names.
    """
    met = _models.get()
    if met is None:
        return
    if any(other is not envoy for other in met):
        raise RemoteError(
            "one job runs on one model, and two lenses are used in this one\n"
            "  send one job for each, or use remote=False"
        )
    met.append(envoy)


def imports_of(payload: bytes) -> set[tuple[str, str]]:
    """Every (module, name) that unpickling a payload would import, (module, "") for a module; nothing is executed."""
    found: set[tuple[str, str]] = set()
    strings: list[str] = []  # the last ones pushed; a global takes the last two
    memo: dict[Any, str | None] = {}
    last: str | None = None
    names_module = False  # the next string pushed does
    for opcode, argument, _ in pickletools.genops(payload):
        name = opcode.name
        if name in ("MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT"):
            memo[len(memo) if name == "MEMOIZE" else argument] = last
            continue
        last = None
        if name in ("GLOBAL", "INST"):
            module, _, attribute = str(argument).partition(" ")
            found.add((module, attribute))
        elif name == "STACK_GLOBAL":
            found.add((strings[-2], strings[-1]))
            last = MODULE if (strings[-2], strings[-1]) == SUBIMPORT else None
        elif name.endswith("UNICODE"):
            last = str(argument)
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            last = memo.get(argument)
        if last == MODULE:
            names_module = True
        elif last is not None:
            strings.append(last)
            if names_module:
                found.add((last, ""))
            names_module = False
    return found


def check_payload(payload: bytes) -> None:
    """RemoteError for a payload that refers to this library's code by name."""
    ours = sorted(
        f"{module}.{name}".rstrip(".") for module, name in imports_of(payload) if module.partition(".")[0] == "lmm_lens"
    )
    if ours:
        raise RemoteError(
            f"this cannot run on a server, which does not have lmm-lens: it uses {', '.join(ours)}\n"
            "  inside a remote trace use torch, plain values, lens.read, lens.write and prompt.mask; compute the rest "
            "before the block"
        )
