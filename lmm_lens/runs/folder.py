"""The folder of a long run: nothing that is finished is ever computed twice, or lost.

    manifest.json         which run this is: kind, model, arguments, seeds, versions
    parts/*.safetensors   the finished items in parts, each whole or not there, with a checksum
    state.json            what else must survive, and that the run is finished
    lock                  held by the process that works here

Killed at any moment, the same command opens the folder again and goes on behind the last part that was written.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ScoreError
from ..warnings import warn
from . import disk, part
from .lock import Lock
from .manifest import Manifest, as_json
from .ownership import MANIFEST, PARTS, STATE, take_over
from .part import RunPart
from .store import Store

AGAIN = "free space, or make the folder writable, and run the same command again"


class RunFolder(Store):
    """The finished items of one run, in a folder. It is made if it is not there, and continued if it is.

    A damaged part is told with a warning, moved aside (`*.corrupt`) and computed again. The folder belongs to the
    process that opened it until `close`, which `with` calls, or until nobody refers to this object; reading goes on
    to work afterwards.

    Args:
        path: of the folder; the folder it lies in must exist.
        kind: what the run computes, as in "head effects".
        about: what makes it this run and no other, of JSON types: identity of the model, arguments, seeds. Its
            "versions", if any, join those recorded anyway; they may change, with a warning.

    Raises:
        ScoreError: the folder belongs to another run or holds other things, its manifest is damaged, another process
            works in it, or it cannot be made.
    """

    manifest: Manifest
    lock: Lock | None
    _state: dict[str, Any]

    def __init__(self, path: str | os.PathLike[str], kind: str, about: Mapping[str, Any]) -> None:
        super().__init__()
        self.path = Path(path)
        mine = Manifest.of(kind, about)
        if not self.path.absolute().parent.is_dir():
            raise ScoreError(
                f"the folder in which the run folder {self.path.name!r} would lie does not exist\n  make it first"
            )
        with disk.told(f"the run folder {self.path.name!r} cannot be made", AGAIN):
            self.manifest, self.lock = take_over(self.path, mine)
        try:
            self._load(mend=True)
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, path: str | os.PathLike[str], kind: str | None = None) -> RunFolder:
        """A run for reading only, finished or not, also while a process works on it.

        Args:
            path: of the folder.
            kind: what it must compute; None for anything.

        Raises:
            ScoreError: it is no run folder, of another kind, or its manifest is damaged.
        """
        folder = cls.__new__(cls)
        Store.__init__(folder)
        folder.path, folder.lock = Path(path), None
        if not (folder.path / MANIFEST).is_file():
            raise ScoreError(f"{folder.path.name!r} is no run folder: it has no {MANIFEST}")
        folder.manifest = Manifest.read(folder.path / MANIFEST)
        if kind not in (None, folder.kind):
            raise ScoreError(f"the run folder {folder.path.name!r} holds {folder.kind}, expected {kind}")
        folder._load(mend=False)
        return folder

    def close(self) -> None:
        """Let another process work here; this object can still be read."""
        if self.lock is not None:
            self.lock.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        how_far = "finished" if self.finished else "not finished"
        return f"RunFolder {self.path.name!r} of {self.kind}: {self.n_items} items, {how_far}"

    # ------------------------------------------------------------------ what it is

    @property
    def kind(self) -> str:
        return self.manifest.kind

    @property
    def about(self) -> Mapping[str, Any]:
        """What was given when the run began, without versions."""
        return self.manifest.about

    @property
    def finished(self) -> bool:
        """Whether all items are there; a finished run of which a part was damaged is not finished any more."""
        n = self._state["n_items"]
        return n is not None and self._is_whole(n)

    @property
    def results(self) -> Mapping[str, Any]:
        """What was given to `finish`; empty before."""
        results: Mapping[str, Any] = self._state["results"]
        return results

    @property
    def state(self) -> Mapping[str, Any]:
        """What was given to `note`."""
        notes: Mapping[str, Any] = self._state["notes"]
        return notes

    # ------------------------------------------------------------------ writing

    def finish(self, n_items: int, about: Mapping[str, Any] | None = None) -> None:
        """Record that all items are there.

        Args:
            n_items: how many there are.
            about: what else to keep beside the numbers, of JSON types; see `results`.

        Raises:
            ScoreError: some are missing, or it cannot be written.
        """
        if not self._is_whole(n_items):
            raise ScoreError(f"a run of {n_items} items is not finished with items {self._said()}")
        self._set(n_items=n_items, results=as_json(about or {}, "what a run ends with"))

    def note(self, **state: Any) -> None:
        """Keep small things, of JSON types, by name; they are there again when the run is continued."""
        self._set(notes={**self._state["notes"], **as_json(state, "the state of a run")})

    def _set(self, **changes: Any) -> None:
        self._check_mine()
        new = {**self._state, **changes}
        with disk.told(f"the state of the run folder {self.path.name!r} could not be written", self._safe(), AGAIN):
            disk.write_json(self.path / STATE, new)
        self._state = new

    def _keep(self, new: RunPart) -> None:
        self._check_mine()
        what = f"items {new.first} to {new.range.stop - 1} could not be written to the run folder {self.path.name!r}"
        with disk.told(what, self._safe(), AGAIN):
            disk.replace(self._part_path(new.range), new.to_bytes())

    def _check_mine(self) -> None:
        if self.lock is None or not self.lock.held:
            why = "was opened for reading only" if self.lock is None else "was closed, or opened anew by this process"
            raise ScoreError(f"the run folder {self.path.name!r} {why}\n  open it with RunFolder(...) to write")

    def _is_whole(self, n_items: int) -> bool:
        return self.ranges == ((range(n_items),) if n_items else ())

    def _safe(self) -> str:
        if not self.path.is_dir():
            return "the folder is gone, and with it what was finished"
        return f"the {self.n_items} items that were written before are safe"

    # ------------------------------------------------------------------ reading

    def _load(self, mend: bool) -> None:
        """Read everything once: a damaged part is left out, and with `mend` moved aside."""
        self._state = {"notes": {}, "n_items": None, "results": {}}
        with disk.told(f"the run folder {self.path.name!r} cannot be read"):
            if (self.path / STATE).exists():
                try:
                    self._state = disk.read_json(self.path / STATE)
                except disk.DamagedError as error:
                    self._put_aside(self.path / STATE, error, "its notes are lost", mend)
            for path in sorted((self.path / PARTS).glob("*.safetensors")):
                try:
                    found = part.read(path)
                    self._check_fits(found, path)
                    self._take(found)
                except disk.DamagedError as error:
                    self._put_aside(path, error, "its items will be computed again", mend)

    def _check_fits(self, found: RunPart, path: Path) -> None:
        if path != self._part_path(found.range):
            raise disk.DamagedError(f"its name is not that of items {found.first} to {found.range.stop - 1}")
        if self._taken and found.first < self._taken[-1].stop:
            raise disk.DamagedError("it overlaps the part before it")
        if self.layout not in (None, found.layout):
            raise disk.DamagedError("its tensors are others than those of the part before it")

    def _put_aside(self, path: Path, why: disk.DamagedError, then: str, mend: bool) -> None:
        warn(
            f"{path.name!r} in the run folder {self.path.name!r} is damaged: {why}; "
            + (f"it was moved aside, and {then}" if mend else "it was left out")
        )
        if mend:
            os.replace(path, path.with_name(f"{path.name}.corrupt"))

    def _read(self, at: range) -> RunPart:
        path = self._part_path(at)
        try:
            with disk.told(f"{path.name!r} in the run folder {self.path.name!r} cannot be read"):
                return part.read(path)
        except disk.DamagedError as error:
            raise ScoreError(
                f"{path.name!r} in the run folder {self.path.name!r} was damaged while it was in use: {error}\n"
                "  run the same command again: it will be computed anew"
            ) from error

    def _forget(self, at: range) -> None:
        self._check_mine()
        with disk.told(f"a part of the run folder {self.path.name!r} could not be replaced", self._safe(), AGAIN):
            self._part_path(at).unlink()
            disk.sync_folder(self.path / PARTS)

    def _part_path(self, at: range) -> Path:
        return self.path / PARTS / part.file_name(at)
