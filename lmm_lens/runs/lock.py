"""One process at a time works on a run folder.

The lock is the operating system's (flock), so it ends with the process that holds it, however that ends. A process
that starts over in a folder of its own, as a notebook cell that was interrupted and run again does, takes over from
its earlier self.
"""

from __future__ import annotations

import errno
import os
import socket
import weakref
from contextlib import suppress
from pathlib import Path

from ..errors import ScoreError
from ..warnings import warn


class Lock:
    """Held from its making until `close`, or until nobody refers to it any more.

    Args:
        path: of the lock file, which stays.

    Raises:
        ScoreError: another process holds it.
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        import fcntl

        self.path = path.resolve()
        for other in list(_held):
            if other.path == self.path:
                other.close()
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self._close = weakref.finalize(self, os.close, file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(file, 200, 0).decode(errors="replace").strip()
            self.close()
            raise ScoreError(
                f"the run folder {path.parent.name!r} is in use by {owner or 'another process'}\n"
                "  wait until that has ended, or give another folder"
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
                self.close()
                raise
            warn(f"the file system of {path.parent.name!r} has no locks: let no second process work in that folder")
        _held.add(self)
        with suppress(OSError):  # on a full disk the lock holds all the same; only the name of its owner is missing
            os.ftruncate(file, 0)
            os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)

    @property
    def held(self) -> bool:
        return self._close.alive

    def close(self) -> None:
        self._close()


_held: weakref.WeakSet[Lock] = weakref.WeakSet()


def _let_go() -> None:
    """A forked child, as of a data loader, would hold the lock beyond its parent's end."""
    for lock in list(_held):
        lock.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
