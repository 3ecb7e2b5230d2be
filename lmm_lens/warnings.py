"""Every warning of this library, told at the line of the user's that led to it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType

from .errors import printable

PASSED_THROUGH = frozenset(
    ["lmm_lens", "contextlib", "functools", "threading", "concurrent", "jaxtyping", "beartype", "torch", "transformers"]
)
"""Packages between our lines and the user's, whose own lines say nothing of what led here."""


class LensWarning(UserWarning):
    """Base of all warnings of lmm-lens."""


class NothingChangedWarning(LensWarning):
    """An intervention ran and changed nothing."""


_COUNTED: ContextVar[tuple[type[LensWarning], ...]] = ContextVar("_COUNTED", default=())


@contextmanager
def counted(*categories: type[LensWarning]) -> Iterator[None]:
    """Inside, and in this thread alone, warnings of these kinds are not told one by one; the caller counts them."""
    token = _COUNTED.set(categories)
    try:
        yield
    finally:
        _COUNTED.reset(token)


def warn(message: str, category: type[LensWarning] = LensWarning) -> None:
    """Warn, at the line outside this library that led here; where there is none, as in a thread, at our own."""
    if issubclass(category, _COUNTED.get()):
        return
    frame: FrameType | None = sys._getframe()
    depth = 1
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in PASSED_THROUGH:
        frame, depth = frame.f_back, depth + 1
    warnings.warn(printable(message), category, stacklevel=depth if frame is not None else 2)
