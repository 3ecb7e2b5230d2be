"""Every warning of this library, told at the line of the user's that led to it."""

from __future__ import annotations

import sys
import warnings
from types import FrameType


class LensWarning(UserWarning):
    """Base of all warnings of lmm-lens."""


class NothingChangedWarning(LensWarning):
    """An intervention ran and changed nothing."""


def warn(message: str, category: type[LensWarning] = LensWarning) -> None:
    """Warn, at the line outside this library that led here."""
    package, depth = __name__.partition(".")[0], 1
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, category, stacklevel=depth)
