"""What a function's code does with names: which attributes it writes, which it reads, which globals it takes."""

from __future__ import annotations

import dis
import types
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple


class Names(NamedTuple):
    """Names in a function's code, that of functions inside it included.

    Attributes:
        written: attributes that it assigns, of whatever object.
        read: attributes and methods that it takes.
        globals: what it takes from its module.
    """

    written: frozenset[str]
    read: frozenset[str]
    globals: frozenset[str]


@lru_cache(maxsize=4096)  # code is never changed; another function has another
def names_in(code: types.CodeType) -> Names:
    """The names in a function's code."""
    found: dict[str, set[str]] = {"STORE_ATTR": set(), "LOAD_ATTR": set(), "LOAD_GLOBAL": set()}
    for each in codes_in(code):
        for step in dis.get_instructions(each):
            kind = {"LOAD_METHOD": "LOAD_ATTR", "LOAD_NAME": "LOAD_GLOBAL"}.get(step.opname, step.opname)
            if kind in found and isinstance(step.argval, str):
                found[kind].add(step.argval)
    return Names(*(frozenset(found[kind]) for kind in ("STORE_ATTR", "LOAD_ATTR", "LOAD_GLOBAL")))


def codes_in(code: types.CodeType) -> Iterator[types.CodeType]:
    """A code and those of the functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from codes_in(constant)
