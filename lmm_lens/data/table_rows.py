"""A row of any source with its place, and what its values must be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from ..errors import ScoreError
from .problems import Bad, RowError
from .sample import Sample


@dataclass(frozen=True)
class TableRow:
    """One row.

    Attributes:
        number: from 1, of the rows of its source.
        where: "row 17 (pope.json line 18)".
        values: name to value, or what is wrong with the row.
    """

    number: int
    where: str
    values: Mapping[str, Any] | RowError

    def checked(self) -> Mapping[str, Any]:
        """The values; raises the RowError where there are none."""
        if isinstance(self.values, RowError):
            raise self.values
        return self.values


def sample_of(row: TableRow, make: Callable[[Mapping[str, Any]], Sample]) -> Sample | Bad:
    """The sample that `make` makes of a row, or what is bad."""
    try:
        return make(row.checked())
    except RowError as error:
        return Bad(row.where, error.reason, error.detail)
    except ScoreError as error:  # of the sample itself
        return Bad(row.where, "no sample", str(error))


def missing(value: Any) -> bool:
    """Whether a table's cell is empty: None, NaN, pandas's NA or NaT."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    return type(value).__name__ in ("NAType", "NaTType")


def value_of(values: Mapping[str, Any], name: str) -> Any:
    """A value; a RowError where the row has not its name."""
    if name not in values:
        raise RowError("missing key", f"there is no {name!r}, only {', '.join(map(repr, values)) or 'an empty row'}")
    return values[name]


def text(values: Mapping[str, Any], name: str) -> str:
    """A value as text: a text, or a number written out.

    Raises:
        RowError: it is missing, empty, or something else.
    """
    value = value_of(values, name)
    if missing(value):
        raise RowError("missing value", f"{name!r} is empty")
    if isinstance(value, str):
        if not value.strip():
            raise RowError(f"empty {name}", f"{name!r} is empty")
        return value.strip()
    if isinstance(value, Integral) and not isinstance(value, bool):
        return str(int(value))
    if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value):
        return str(int(float(value))) if float(value).is_integer() else str(value)  # pandas makes 3.0 of 3 beside a gap
    raise RowError("no text", f"expected a text as {name!r}, given {value!r:.60}")


def yes_or_no(values: Mapping[str, Any], name: str) -> str:
    """A label, "yes" or "no" in any case.

    Raises:
        RowError: it is neither.
    """
    label = text(values, name).lower()
    if label not in ("yes", "no"):
        raise RowError("no yes or no", f"{name!r} must be yes or no, given {values[name]!r}")
    return label


class Streamed:
    """Rows that somebody else reads, each time anew.

    Args:
        rows: mappings.
        place: added to where a row stands, as in " (pope.json)".
    """

    def __init__(self, rows: Any, place: str = "") -> None:
        self.rows, self.place = rows, place

    def __iter__(self) -> Iterator[TableRow]:
        return (self._row(number, values) for number, values in enumerate(self.rows, 1))

    def _row(self, number: int, values: Any) -> TableRow:
        wrong = RowError("no row", f"expected names with values, given {values!r:.60}")
        return TableRow(number, f"row {number}{self.place}", values if isinstance(values, Mapping) else wrong)


class Listed(Streamed):
    """Rows that can be had by number."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> TableRow:
        return self._row(index + 1, self.rows[index])
