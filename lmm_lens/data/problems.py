"""Rows that cannot be used: each is named, counted by its reason, and never dropped without a word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .sample import Sample

N_NAMED = 20


class RowError(Exception):
    """What is wrong with one row. It stays inside this package: readers turn it into `Bad`.

    Args:
        reason: in two or three words, the same for all rows with this defect.
        detail: the whole of it, naming the value.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Bad:
    """A row that gives no sample.

    Attributes:
        where: "row 17 (pope.json line 18)".
        reason, detail: as in `RowError`.
    """

    where: str
    reason: str
    detail: str

    def __str__(self) -> str:
        return f"{self.where}: {self.detail}"


class Problems:
    """The rows that an iteration left out.

    Attributes:
        count: how many.
        by_reason: reason to how many, in the order of their first appearance.
        first: the first 20, each "row 17 (pope.json line 18): the picture COCO_x.jpg does not exist in val2014".
    """

    def __init__(self) -> None:
        self.by_reason: Counter[str] = Counter()
        self.first: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        return self.by_reason.total()

    @classmethod
    def of_notes(cls, notes: Mapping[str, str]) -> Problems:
        """Those that a run noted: where to "reason<tab>detail"."""
        problems = cls()
        for where, note in notes.items():
            problems.add(Bad(where, *note.partition("\t")[::2]))
        return problems

    def add(self, bad: Bad) -> None:
        """Count a row."""
        if self.count < N_NAMED:
            self.first += (str(bad),)
        self.by_reason[bad.reason] += 1

    def __str__(self) -> str:
        if not self.count:
            return "no bad rows"
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.by_reason.items())
        shown = [f"  {line}" for line in self.first[:3]]
        more = [f"  and {self.count - 3} more"] if self.count > 3 else []
        return "\n".join([f"{self.count} bad row{'s' * (self.count > 1)} left out: {reasons}", *shown, *more])

    __repr__ = __str__


def all_or_none(group: Sequence[Sample | Bad], where: Iterable[str]) -> list[Sample | Bad]:
    """What counts only together, together: if one of the group is bad, the others are of no use either.

    Args:
        group: the questions of one picture or pair, in order.
        where: the place of each.
    """
    if not any(isinstance(item, Bad) for item in group):
        return list(group)
    why = "it counts only together with another question, which is bad"
    return [
        item if isinstance(item, Bad) else Bad(place, "incomplete group", why)
        for item, place in zip(group, where, strict=True)
    ]
