"""One thread at a time reads the source of functions.

Python 3.11 counts how deep it is in the tree that `ast.parse` makes in one variable for all threads. Where a garbage
collection in the middle of it lets another thread parse, the first one ends in a SystemError. `linecache`, behind
`inspect.getsource`, has no lock either. nnsight parses too: forwards whose operations are asked for, and `with` blocks.
So whatever reads sources, or makes a framework read them, holds the lock.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType
from typing import Any

READING = threading.RLock()
_OURS = __name__.partition(".")[0] + "."
_lines: dict[int, tuple[CodeType, list[str], int]] = {}  # by the id of a code, which is kept so that it stays its own


def source_of(function: Callable[..., Any]) -> str:
    """The source of a function, of the innermost one where it is decorated.

    Raises:
        OSError, TypeError: there is none to read.
    """
    with READING:
        return inspect.getsource(inspect.unwrap(function))


def _is_ours(thing: Any) -> bool:
    """Whether it is a function written in this library, and not one around another."""
    is_function = isinstance(thing, FunctionType) and "__wrapped__" not in vars(thing)
    return is_function and (thing.__module__ or "").startswith(_OURS)


@contextmanager
def read_once() -> Iterator[None]:
    """Inside, `inspect` remembers the source of functions of this library; hold the lock.

    It finds the end of a function by splitting it into tokens. A job that is packed asks for that of some 150 of ours,
    of each twice, which would be most of the time that packing takes.
    """
    getsourcelines = inspect.getsourcelines

    def remembered(thing: Any) -> tuple[list[str], int]:
        if not _is_ours(thing):
            return getsourcelines(thing)
        code = thing.__code__
        if id(code) not in _lines:
            _lines[id(code)] = code, *getsourcelines(thing)
        _, lines, first = _lines[id(code)]
        return [*lines], first

    inspect.getsourcelines = remembered  # type: ignore[assignment]  # of more than what has a name
    try:
        yield
    finally:
        inspect.getsourcelines = getsourcelines
