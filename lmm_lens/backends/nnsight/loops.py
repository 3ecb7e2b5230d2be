"""Open-ended loops over the steps of a generation, at the end of which nnsight warns, by design."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

MESSAGE = "(?#of lmm-lens).*was never reached"  # unlike a filter of the user's own, which is not ours to take away

_LOCK = threading.Lock()
_filters: list[Any] = []  # one a loop that is under way, all of them the same


@contextmanager
def open_ended_loops() -> Iterator[None]:
    """Inside, no such warning, in any thread.

    `warnings.catch_warnings` would put back the filters that it found also while another thread needs ours; so the
    last to leave takes it away.
    """
    with _LOCK:
        warnings.filterwarnings("ignore", message=MESSAGE, category=UserWarning)
        _filters.append(warnings.filters[0])
    try:
        yield
    finally:
        with _LOCK:
            ours, known = _filters.pop(), cast("list[Any]", warnings.filters)
            if not _filters and ours in known:
                known.remove(ours)
