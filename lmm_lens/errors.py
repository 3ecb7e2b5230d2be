"""Every error this library raises on purpose, and how its text is laid out.

An error says what was expected, what was given and what to do, in three lines at most. All derive from
`LensError`, a `ValueError`, so a caller may catch one class.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def printable(text: str) -> str:
    r"""A text for a terminal: control characters, which would move its cursor or more, are shown and not obeyed.

    >>> print(printable("a name \x1b[2J of a file"))
    a name \x1b[2J of a file
    """
    return "".join(c if c in "\n\t" or not (ord(c) < 32 or 127 <= ord(c) < 160) else repr(c)[1:-1] for c in text)


class LensError(ValueError):
    """Base of all errors raised by lmm-lens."""

    def __init__(self, *parts: object) -> None:
        # named: where this class is made anew from its source, on a server, `super()` knows of no class
        ValueError.__init__(self, *(printable(part) if isinstance(part, str) else part for part in parts))


class ModelError(LensError):
    """The model cannot be used: it has no image token, no decoder layers, or it is being trained."""


class PromptError(LensError):
    """Text, images or tensors do not make a prompt that the model could answer."""


class HookError(LensError):
    """A hook point, layer, head or row was named that is not there, or a hook did not fire."""


class InterventionError(LensError):
    """An intervention is ill-defined, or would touch nothing."""


class ScoreError(LensError):
    """Scores cannot be computed, saved or loaded as asked."""


class RemoteError(LensError):
    """A server could not be reached, refused, went silent, or failed; nothing that finished before is lost.

    Attributes:
        details: what the server said, in full; empty where it said nothing more.
    """

    details: str = ""


def unknown(what: str, given: object, valid: Iterable[object]) -> str:
    """The text for a name that does not exist: what was given, the closest valid name, all valid names.

    >>> print(unknown("metric", "visual_mas", ["visual_mass", "hit"]))
    unknown metric 'visual_mas', did you mean 'visual_mass'?
      valid: visual_mass, hit
    """
    names = [str(name) for name in valid]
    close = difflib.get_close_matches(str(given), names, n=1)
    hint = f", did you mean {close[0]!r}?" if close else ""
    return f"unknown {what} {given!r}{hint}\n  valid: {', '.join(names)}"
