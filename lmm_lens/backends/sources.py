"""One thread at a time reads the source of functions.

Python 3.11 counts how deep it is in the tree that `ast.parse` makes in one variable for all threads. Where a garbage
collection in the middle of it lets another thread parse, the first one ends in a SystemError. `linecache`, behind
`inspect.getsource`, has no lock either. nnsight parses too: forwards whose operations are asked for, and `with` blocks.
So whatever reads sources, or makes a framework read them, holds the lock.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from typing import Any

READING = threading.RLock()


def source_of(function: Callable[..., Any]) -> str:
    """The source of a function, of the innermost one where it is decorated.

    Raises:
        OSError, TypeError: there is none to read.
    """
    with READING:
        return inspect.getsource(inspect.unwrap(function))
