"""Making a run folder, or finding out that the one that is there is that of this run."""

from __future__ import annotations

from pathlib import Path

from ..errors import ScoreError
from . import disk
from .lock import Lock
from .manifest import Manifest

MANIFEST, STATE, PARTS, LOCK = "manifest.json", "state.json", "parts", "lock"


def take_over(path: Path, mine: Manifest) -> tuple[Manifest, Lock]:
    """Take a folder for a run, and remove the half files of a process that was killed in it.

    Args:
        path: of the folder.
        mine: the run.

    Returns:
        The manifest to go on with, and the lock.

    Raises:
        ScoreError: it is the folder of another run or of other things, or another process works in it.
        OSError: it cannot be made.
    """
    if not path.is_dir():
        path.mkdir(exist_ok=True)
        disk.sync_folder(path.absolute().parent)
    _check_ours(path)  # before a lock file is put among somebody's files
    lock = Lock(path / LOCK)
    try:
        (path / PARTS).mkdir(exist_ok=True)
        manifest = _agreed(path / MANIFEST, mine)
        for file in [*path.iterdir(), *(path / PARTS).iterdir()]:
            if disk.is_temporary(file):
                file.unlink()
    except BaseException:
        lock.close()  # an error that is kept, as a notebook does, would keep the lock
        raise
    return manifest, lock


def _agreed(path: Path, mine: Manifest) -> Manifest:
    if not path.exists():
        mine.write(path)
        return mine
    theirs = Manifest.read(path)
    agreed = theirs.agree(mine, path.parent.name)
    if agreed is not theirs:
        agreed.write(path)
    return agreed


def _check_ours(path: Path) -> None:
    """ScoreError unless it has our manifest, or nothing but what a process leaves that is killed before it."""
    if (path / MANIFEST).exists():
        Manifest.read(path / MANIFEST)
        return
    ours = {LOCK, PARTS, disk.temporary(path / MANIFEST).name}
    parts = list((path / PARTS).iterdir()) if (path / PARTS).is_dir() else []
    others = sorted(file.name for file in [*path.iterdir(), *parts] if file.name not in ours)
    if others:
        raise ScoreError(
            f"the folder {path.name!r} is no run folder: it holds {others[0]!r} and has no {MANIFEST}\n"
            "  give a new or an empty folder"
        )
