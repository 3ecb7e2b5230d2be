"""A data set: samples one after the other, read anew each time, bad rows refused or counted."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import ScoreError, unknown
from .problems import Bad, Problems
from .sample import Sample

ON_BAD = ("refuse", "skip")


class DataSet:
    """Samples that are read when they are asked for, as often as they are asked for.

    The readers of this package make them (`pope`, `mme`, `mmvp`, `pointqa`, `table`, `shapes`). Of the whole, at most
    the ids that rows bring along are remembered, as 64-bit numbers, to find one that comes twice.

    Args:
        name: of the data set.
        units: what is read at once, over and over: rows, pictures, pairs. With a length and an index it can be
            shuffled.
        read: a unit's samples, and what is bad of it.
        describe: what this data set is, of JSON types; called when somebody asks for `settings`.
        on_bad: "refuse", the first bad row is an error; "skip", bad rows are left out and counted in `problems`.
        per_unit: samples of a unit.
        numbered: ids are unique because they count rows.

    Attributes:
        problems: the bad rows of the last iteration.

    Raises:
        ScoreError: `on_bad` is neither.
    """

    def __init__(
        self,
        name: str,
        units: Iterable[Any],
        read: Callable[[Any], Iterable[Sample | Bad]],
        *,
        describe: Callable[[], dict[str, Any]],
        on_bad: str = "refuse",
        per_unit: int = 1,
        numbered: bool = False,
    ) -> None:
        if on_bad not in ON_BAD:
            raise ScoreError(unknown("choice of on_bad", on_bad, ON_BAD))
        self.name, self.on_bad, self.problems = name, on_bad, Problems()
        self._units, self._read, self._describe = units, read, describe
        self._per_unit, self._numbered = per_unit, numbered
        self._seed: int | None = None
        self._limit: int | None = None
        self._half: int | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What a run's manifest stores: which files (name, size, SHA-256, never their folders) and which options."""
        chosen = {"shuffled": self._seed, "taken": self._limit, "half": self._half}
        about = {"name": self.name, **self._describe(), "on_bad": self.on_bad}
        return about | {name: value for name, value in chosen.items() if value is not None}

    def rows(self) -> Iterator[Sample | Bad]:
        """The samples, and in their places the rows that give none.

        Raises:
            ScoreError: a bad row with on_bad="refuse", rows that are all bad, or no rows at all.
        """
        self.problems = problems = Problems()
        given = 0
        for item in self._items():
            if isinstance(item, Sample):
                if self._half in (None, given // self._per_unit % 2):
                    yield item
                given += 1
                if given == self._limit:
                    return
            elif self.on_bad == "refuse":
                raise ScoreError(f'{item}\n  correct the row, or leave rows like it out with on_bad="skip"')
            else:
                problems.add(item)
                yield item
        if problems.count and not given:
            reasons = ", ".join(f"{reason} {count}" for reason, count in problems.by_reason.items())
            raise ScoreError(f"every row of {self.name!r} is bad: {reasons}\n  {problems.first[0]}")
        if not given:
            raise ScoreError(f"data set {self.name!r} has no rows")

    def __iter__(self) -> Iterator[Sample]:
        """The samples alone; see `rows`."""
        return (item for item in self.rows() if isinstance(item, Sample))

    def _items(self) -> Iterator[Sample | Bad]:
        """Every row in order, an id that comes again being bad."""
        units = self._units if self._seed is None else _in_order(self._units, self._seed)
        seen: set[int] = set()
        for unit in units:
            for item in self._read(unit):
                if isinstance(item, Sample) and not self._numbered:
                    digest = hash(item.id)
                    if digest in seen:
                        item = Bad(_place(unit), "id twice", f"a row before it has the id {item.id} too")
                    seen.add(digest)
                yield item

    def __len__(self) -> int:
        """How many samples there are if no row is bad.

        Raises:
            TypeError: the source is a stream, so only reading it would tell.
        """
        try:
            units: Any = self._units
            n_units = len(units)
        except TypeError:
            raise TypeError(f"data set {self.name!r} is a stream, its length is not known") from None
        n = n_units * self._per_unit
        n = n if self._limit is None else min(n, self._limit)
        if self._half is None:
            return n
        pairs, rest = divmod(n, 2 * self._per_unit)
        return pairs * self._per_unit + max(0, min(rest - self._half * self._per_unit, self._per_unit))

    def __bool__(self) -> bool:
        return True  # else Python would ask for the length

    def take(self, n: int) -> DataSet:
        """The first n good samples.

        What counts only together stays together: of MME and MMVP take an even number.

        Raises:
            ScoreError: n is not positive, or would cut a group in two.
        """
        if self._half is not None:
            raise ScoreError("take before you halve: data.take(n).half(0)")
        if n < 1 or n % self._per_unit:
            expected = "a positive number" if self._per_unit == 1 else f"a positive multiple of {self._per_unit}"
            raise ScoreError(f"take of data set {self.name!r} expects {expected} of samples, given {n}")
        return self._with(limit=n if self._limit is None else min(n, self._limit))

    def shuffled(self, seed: int = 0) -> DataSet:
        """The same samples in a random order, the same for the same seed; groups stay together.

        Raises:
            ScoreError: the source is a stream, or `take` came first.
        """
        if self._limit is not None:
            raise ScoreError("shuffle before you take: data.shuffled(seed).take(n)")
        if not hasattr(self._units, "__getitem__"):
            raise ScoreError(
                f"data set {self.name!r} is a stream and cannot be shuffled\n"
                "  shuffle it where it comes from, or give a file, a table or a list"
            )
        return self._with(seed=seed)

    @property
    def per_unit(self) -> int:
        """How many samples count only together: two of MME's pictures and MMVP's pairs, else one."""
        return self._per_unit

    def half(self, which: int) -> DataSet:
        """Every other good sample, so that what is chosen on one half is measured on the other.

        What counts only together stays together. Of data that is no longer than one such group, half 1 has nothing.

        Args:
            which: 0, the half with the first sample, or 1, the other.

        Raises:
            ScoreError: another number, or this is a half already.
        """
        if isinstance(which, bool) or which not in (0, 1):
            raise ScoreError(f"a half is 0 or 1, given {which!r}")
        if self._half is not None:
            raise ScoreError("this is a half already: take halves of the whole")
        return self._with(half=which)

    def _with(self, *, seed: int | None = None, limit: int | None = None, half: int | None = None) -> DataSet:
        other = object.__new__(type(self))
        other.__dict__ |= self.__dict__ | {"problems": Problems()}
        other._seed = self._seed if seed is None else seed
        other._limit = self._limit if limit is None else limit
        other._half = self._half if half is None else half
        return other

    def __repr__(self) -> str:
        try:
            return f"DataSet {self.name} of {len(self)} samples"
        except TypeError:
            return f"DataSet {self.name}, a stream"


def _place(unit: Any) -> str:
    """Where a unit stands: a row, or the name of a source with a row of it."""
    return getattr(unit[-1] if isinstance(unit, tuple) else unit, "where", f"{unit!r:.60}")


def _in_order(units: Any, seed: int) -> Iterator[Any]:
    order = list(range(len(units)))
    random.Random(seed).shuffle(order)
    return (units[i] for i in order)


def facts(path: Path) -> dict[str, Any]:
    """A file as a manifest names it: its name, its size in bytes, its SHA-256."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": digest}


class Joined(Sequence[tuple[Any, Any]]):
    """Several sources one after the other, each unit with the name of its source.

    Args:
        sources: name to units.
    """

    def __init__(self, sources: dict[Any, Any]) -> None:
        self.sources = sources

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return ((name, unit) for name, units in self.sources.items() for unit in units)

    def __len__(self) -> int:
        return sum(len(units) for units in self.sources.values())

    def __getitem__(self, index: Any) -> Any:
        for name, units in self.sources.items():
            if index < len(units):
                return name, units[index]
            index -= len(units)
        raise IndexError(index)
