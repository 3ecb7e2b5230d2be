"""Ctrl-C between putting edits in and taking them out again.

An interrupt is raised at whatever bytecode the main thread is at. Were that the first one of an `__exit__`, nothing
would be undone, and a model would stay edited without anybody knowing. So while a session is open, the main thread's
handler of SIGINT looks where it struck: inside a function that opens or closes a session it waits until that is done;
anywhere else it acts at once, as before.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

_WHOLE: set[CodeType] = set()  # what is not to be interrupted


def uninterrupted(function: F) -> F:
    """Mark a function that opens or closes a session: an interrupt waits until it has returned."""
    _WHOLE.add(function.__code__)
    return function


class InterruptGuard:
    """Holds interrupts back while a session is opened or closed. One for the process; counts its users.

    Outside the main thread, and where SIGINT is ignored or handled outside Python, it does nothing: no interrupt is
    raised there.
    """

    def __init__(self) -> None:
        self._users, self._waiting = 0, False
        self._before: Callable[[int, FrameType | None], Any] | None = None
        self._ours = self._handle  # one bound method, to be told by identity

    def open(self) -> None:
        """Begin to hold back: the first call of a function that is `uninterrupted` and opens a session."""
        if threading.current_thread() is not threading.main_thread():
            return
        before = signal.getsignal(signal.SIGINT)
        if before is not self._ours and callable(before):
            self._before = before
            signal.signal(signal.SIGINT, self._ours)
        self._users += 1  # after the handler: from here on an interrupt waits

    def close(self) -> None:
        """End it, and let an interrupt that waited act: the last call of a function that closes a session."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._users -= 1
        before = self._before
        if not self._users and before is not None:
            if signal.getsignal(signal.SIGINT) is self._ours:  # else somebody has put another one in meanwhile
                signal.signal(signal.SIGINT, before)
            self._before = None
        if self._waiting and before is not None:
            self._waiting = False
            before(signal.SIGINT, None)

    @property
    def waiting(self) -> bool:
        """Whether an interrupt waits."""
        return self._waiting

    def _handle(self, number: int, frame: FrameType | None) -> Any:
        caller = frame
        while caller is not None:
            if caller.f_code in _WHOLE:
                self._waiting = True
                return None
            caller = caller.f_back
        return self._before(number, frame) if self._before is not None else None


GUARD = InterruptGuard()
