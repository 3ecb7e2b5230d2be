"""Rows of files, each with its place: JSON lines, CSV, JSON. Read as a stream, or by number.

UTF-8 with or without a byte order mark, any line ends, blank lines are fine. A row that cannot be read says so in its
values, so that the rows after it can be.
"""

from __future__ import annotations

import csv
import json
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import ScoreError
from .problems import RowError
from .table_rows import Listed, TableRow

BOM = b"\xef\xbb\xbf"


def file_of(path: Any, what: str) -> Path:
    """A file that is there.

    Raises:
        ScoreError: it is not.
    """
    if not Path(path).is_file():
        raise ScoreError(f"there is no file of {what} {str(path)!r}")
    return Path(path)


class _Lines(ABC):
    """Records of a text file, found again by their offsets: 16 bytes a row, counted when first asked for.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def _records(self, file: BinaryIO, line: int) -> Iterator[tuple[int, int, Any]]:
        """(offset, number of its first line, what it holds) of each record from where the file stands."""

    def __iter__(self) -> Iterator[TableRow]:
        with self.path.open("rb") as file:
            for number, (_, line, values) in enumerate(self._records(file, 1), 1):
                yield self._row(number, line, values)

    def __len__(self) -> int:
        return len(self._index[0])

    def __getitem__(self, index: int) -> TableRow:
        offset, line = self._index[0][index], self._index[1][index]
        with self.path.open("rb") as file:
            file.seek(offset)
            return self._row(index + 1, line, next(self._records(file, line))[2])

    @cached_property
    def _index(self) -> tuple[array[int], array[int]]:
        offsets, lines = array("Q"), array("Q")
        with self.path.open("rb") as file:
            for offset, line, _ in self._records(file, 1):
                offsets.append(offset)
                lines.append(line)
        return offsets, lines

    def _row(self, number: int, line: int, values: Any) -> TableRow:
        return TableRow(number, f"row {number} ({self.path.name} line {line})", values)


class JsonLines(_Lines):
    """A JSON object a line."""

    def _records(self, file: BinaryIO, line: int) -> Iterator[tuple[int, int, Any]]:
        offset = file.tell()
        for number, raw in enumerate(file, line):
            content = raw.removeprefix(BOM).strip() if offset == 0 else raw.strip()
            if content:
                yield offset, number, _parsed(content)
            offset += len(raw)


def _parsed(line: bytes) -> Mapping[str, Any] | RowError:
    try:
        values = json.loads(line.decode())
    except UnicodeDecodeError:
        return RowError("not UTF-8", "the line is not UTF-8 text")
    except json.JSONDecodeError as error:
        return RowError("broken JSON", f"the line is no JSON: {error.msg} at column {error.colno}")
    except RecursionError:
        return RowError("broken JSON", "the line is nested too deeply")
    except ValueError as error:  # a number of thousands of digits
        return RowError("broken JSON", f"the line holds a number that is none: {error}"[:200])
    if not isinstance(values, dict):
        return RowError("broken JSON", f"expected a JSON object, given {line[:40].decode(errors='replace')!r}")
    return values


class Delimited(_Lines):
    """A table with a header and one record a line; a quoted field may run over several lines.

    Args:
        path: of the file.
        delimiter: between fields.

    Raises:
        ScoreError: there is no header, or it names a column twice.
    """

    def __init__(self, path: Path, delimiter: str = ",") -> None:
        super().__init__(path)
        self.delimiter = delimiter
        with path.open("rb") as file:
            header: Any = next(self._fields(file, 1), (0, 1, []))[2]
        if isinstance(header, RowError):
            raise ScoreError(f"{path.name!r} has a header that cannot be read: {header}")
        self.columns = [name.strip() for name in header]
        if not self.columns or len(set(self.columns)) < len(self.columns) or not all(self.columns):
            raise ScoreError(
                f"{path.name!r} needs a first line that names each column once, given {self.columns}\n"
                "  pandas leaves the first name empty by default: write such a table with index=False"
            )

    def _records(self, file: BinaryIO, line: int) -> Iterator[tuple[int, int, Any]]:
        at_start = file.tell() == 0
        for offset, number, fields in islice(self._fields(file, line), int(at_start), None):
            if isinstance(fields, list) and len(fields) != len(self.columns):
                fields = RowError("broken row", f"{len(fields)} fields, but the header names {len(self.columns)}")
            yield (
                offset,
                number,
                fields if isinstance(fields, RowError) else dict(zip(self.columns, fields, strict=True)),
            )

    def _fields(self, file: BinaryIO, line: int) -> Iterator[tuple[int, int, Any]]:
        """(offset, first line, fields) of each record that is not blank."""
        position = file.tell()
        is_text = True

        def lines() -> Iterator[str]:
            nonlocal position, line, is_text
            for raw in file:
                content = raw.removeprefix(BOM) if position == 0 else raw
                position += len(raw)
                line += 1
                try:
                    yield content.decode()
                except UnicodeDecodeError:
                    is_text = False
                    yield content.decode(errors="replace")

        reader = csv.reader(lines(), delimiter=self.delimiter, strict=True)
        while True:
            offset, first = position, line
            try:
                fields: Any = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                fields = RowError("broken row", f"it cannot be split into fields: {error}")
            if not is_text:
                fields, is_text = RowError("not UTF-8", "it is not UTF-8 text"), True
            if isinstance(fields, RowError) or any(field.strip() for field in fields) or len(fields) > 1:
                yield offset, first, fields


class JsonArray:
    """An array of objects; JSON has no way to read it but as a whole, once.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def _listed(self) -> Listed:
        found = whole_json(self.path)
        if not isinstance(found, list):
            raise ScoreError(f"{self.path.name!r} holds one object, expected an array of them or one a line")
        return Listed(found, f" ({self.path.name})")

    def __iter__(self) -> Iterator[TableRow]:
        return iter(self._listed)

    def __len__(self) -> int:
        return len(self._listed)

    def __getitem__(self, index: int) -> TableRow:
        return self._listed[index]


def whole_json(path: Path) -> Any:
    """A JSON file.

    Raises:
        ScoreError: it is none.
    """
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ScoreError(f"{path.name!r} is no JSON: {str(error)[:200]}") from error


def json_rows(path: Path) -> JsonLines | JsonArray:
    """The rows of a file that holds an array, or, whatever it is called, an object a line."""
    with path.open("rb") as file:
        start: Iterable[bytes] = (line.removeprefix(BOM).strip() for line in file)
        first = next((line for line in start if line), b"")
    return JsonArray(path) if first.startswith(b"[") or first == b"{" else JsonLines(path)
