"""Where the finished items of a run are: in memory, or in a folder (`RunFolder`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right, insort
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from ..errors import ScoreError
from .part import Layout, RunPart, in_words


class Store(ABC):
    """Finished items by index, in parts that do not overlap; all of one layout."""

    def __init__(self) -> None:
        self._taken: list[range] = []  # one of each part, in order
        self._keys: tuple[range, tuple[str, ...]] = (range(0), ())  # of the part that was asked for last
        self.layout: Layout | None = None

    @property
    def finished(self) -> bool:
        """Whether no item is to come."""
        return False

    @property
    def n_items(self) -> int:
        """How many items are finished."""
        return sum(map(len, self._taken))

    @property
    def n_parts(self) -> int:
        return len(self._taken)

    @property
    def ranges(self) -> tuple[range, ...]:
        """Which items are finished, in order, neighbours merged."""
        merged: list[range] = []
        for at in self._taken:
            touches = bool(merged) and merged[-1].stop == at.start
            merged.append(range(merged.pop().start, at.stop) if touches else at)
        return tuple(merged)

    def __contains__(self, index: int) -> bool:
        return self._at(index) is not None

    def key(self, index: int) -> str:
        """The key of a finished item. ScoreError: it is not finished."""
        at = self._at(index)
        if at is None:
            raise ScoreError(f"item {index} is not finished; finished are {self._said()}")
        if self._keys[0] != at:
            self._keys = (at, self._read(at).keys)
        return self._keys[1][index - at.start]

    def parts(self) -> Iterator[RunPart]:
        """The parts in the order of their items, one in memory at a time."""
        for at in tuple(self._taken):
            yield self._read(at)

    def tensors(self) -> dict[str, Tensor]:
        """All numbers, [n_items, ...] each, in the order of the items; empty if no item is finished."""
        whole: dict[str, Tensor] = {}
        row = 0
        for part in self.parts():
            for name, rows in part.tensors.items():
                if name not in whole:
                    whole[name] = rows.new_empty(self.n_items, *rows.shape[1:])
                whole[name][row : row + len(rows)] = rows
            row += len(part.keys)
        return whole

    def notes(self) -> dict[int, str]:
        """Why items were left out, by index."""
        return {index: note for part in self.parts() for index, note in part.notes.items()}

    def note_on(self, index: int) -> str:
        """Why a finished item was left out; empty for one that was not."""
        at = self._at(index)
        return "" if at is None else self._read(at).notes.get(index, "")

    def drop(self, index: int) -> None:
        """Take a finished item out, so that it is computed again; the others of its part stay.

        Raises:
            ScoreError: it cannot be done.
        """
        at = self._at(index)
        if at is None:
            return
        part = self._read(at)
        rest = [part.cut(kept) for kept in (range(at.start, index), range(index + 1, at.stop)) if kept]
        for kept in rest:  # killed in between, the old part is found to overlap, and no number is lost
            self._keep(kept)
        self._forget(at)
        self._taken.remove(at)
        self._keys = (range(0), ())
        for kept in rest:
            self._take(kept)

    def write(
        self, first: int, keys: Sequence[str], tensors: Mapping[str, Tensor], notes: Mapping[int, str] | None = None
    ) -> None:
        """Add finished items that follow one another.

        Args:
            first: the index of the first one.
            keys: what tells each from others, [n].
            tensors: [n, ...] each.
            notes: why some of them were left out, by index.

        Raises:
            ScoreError: some of them are finished already, they have another layout than those, or they cannot be kept.
        """
        part = RunPart(first, tuple(keys), tensors, dict(notes or {}))
        if any(at.start < part.range.stop and part.first < at.stop for at in self._taken):
            raise ScoreError(f"items {_ends(part.range)} overlap those that are finished: {self._said()}")
        if self.layout not in (None, part.layout):
            raise ScoreError(
                f"items {_ends(part.range)} have other tensors than the finished ones\n"
                f"  finished: {in_words(self.layout or {})}\n  given:    {in_words(part.layout)}"
            )
        self._keep(part)
        self._take(part)

    def _take(self, part: RunPart) -> None:
        insort(self._taken, part.range, key=lambda at: at.start)
        self.layout = part.layout

    def _at(self, index: int) -> range | None:
        """Which part an item is in."""
        near = bisect_right(self._taken, index, key=lambda at: at.start) - 1
        return self._taken[near] if near >= 0 and index in self._taken[near] else None

    def _said(self) -> str:
        return ", ".join(map(_ends, self.ranges)) or "none"

    @abstractmethod
    def _keep(self, part: RunPart) -> None: ...

    @abstractmethod
    def _read(self, at: range) -> RunPart: ...

    @abstractmethod
    def _forget(self, at: range) -> None: ...


class Memory(Store):
    """Finished items in memory, for as long as this object lives."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: dict[range, RunPart] = {}

    def __repr__(self) -> str:
        return f"Memory with {self.n_items} finished items"

    def _keep(self, part: RunPart) -> None:
        self._parts[part.range] = part

    def _read(self, at: range) -> RunPart:
        return self._parts[at]

    def _forget(self, at: range) -> None:
        del self._parts[at]


def _ends(at: range) -> str:
    return f"{at.start} to {at.stop - 1}"
