"""What a table can be: files, Hugging Face data sets, data frames, lists. All become rows with their places."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import ScoreError, unknown
from .dataset import facts
from .table_rows import Listed, Streamed, TableRow
from .text_files import Delimited, JsonLines, file_of, json_rows

AT_ONCE = 32  # rows that are fetched together from Arrow tables
KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class Source:
    """An opened table.

    Attributes:
        name: what it is called.
        rows: `TableRow` objects, as often as wanted.
        folder: that relative paths of pictures start from.
        describe: what it is, of JSON types.
    """

    name: str
    rows: Iterable[TableRow]
    folder: Path
    describe: Callable[[], dict[str, Any]]


def open_source(source: Any, columns: Sequence[str]) -> Source:
    """A table.

    Args:
        source: see `table`.
        columns: that must be there, where that is known beforehand.

    Raises:
        ScoreError: it is none, or a column is not there.
    """
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        return _saved(path, columns) if path.is_dir() else _file(path, columns)
    library = type(source).__module__.partition(".")[0]
    if library == "datasets":
        return _hugging_face(source, columns, "table", {"source": type(source).__name__})
    if library == "pandas" and hasattr(source, "iloc") and hasattr(source, "columns"):
        _check(columns, source.columns)
        if not source.columns.is_unique:
            raise ScoreError(f"expected each column once, given {', '.join(map(str, source.columns))}")
        about = {"source": "DataFrame", "rows": len(source), "columns_given": [str(c) for c in source.columns]}
        return Source("table", Listed(_Frame(source)), Path(), partial(dict, about))
    if isinstance(source, (Mapping, bytes)) or not isinstance(source, Iterable):
        raise ScoreError(
            f"expected a table, given {type(source).__name__}\n"
            "  a table is a file, a folder from save_to_disk, a datasets.Dataset, a DataFrame, or a list of mappings"
        )
    if iter(source) is source:
        raise ScoreError(
            f"{type(source).__name__} can be gone through only once, but a data set is read as often as it is used\n"
            "  give a list, or an object whose __iter__ starts anew"
        )
    rows = Listed(source) if hasattr(source, "__getitem__") and hasattr(source, "__len__") else Streamed(source)
    return Source("table", rows, Path(), partial(dict, source=type(source).__name__))


def _check(columns: Sequence[str], there: Iterable[Any]) -> None:
    known = list(there)
    for column in columns:
        if column not in known:
            raise ScoreError(unknown("column", column, known))


def _file(path: Path, columns: Sequence[str]) -> Source:
    file_of(path, "a table")
    kind = path.suffix.lower()
    rows: Any
    if kind in (".jsonl", ".ndjson"):
        rows = JsonLines(path)
    elif kind == ".json":
        rows = json_rows(path)
    elif kind in (".csv", ".tsv"):
        rows = Delimited(path, "\t" if kind == ".tsv" else ",")
        _check(columns, rows.columns)
    elif kind == ".parquet":
        rows = _Parquet(path, columns)
        _check(columns, rows.there)
    else:
        raise ScoreError(f"{path.name!r} is no table that can be read: expected a file ending in {', '.join(KINDS)}")
    return Source(path.stem, rows, path.parent, partial(_of_file, path))


def _of_file(path: Path) -> dict[str, Any]:
    return {"files": [facts(path)]}


class _Parquet:
    """A Parquet file, read in batches. It has a length, but no way to one row that is not slow.

    Args:
        path: of the file.
        columns: that are read.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise ScoreError("reading Parquet needs pyarrow: pip install pyarrow") from error
        self.path, self.columns = path, list(columns)
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                self.there: list[str] = file.schema_arrow.names
                self._n: int = file.metadata.num_rows
        except (pyarrow.ArrowException, OSError) as error:
            raise ScoreError(f"{path.name!r} is no Parquet file: {error}") from error

    def __iter__(self) -> Iterator[TableRow]:
        from pyarrow.parquet import ParquetFile

        number = 0
        with ParquetFile(self.path) as file:
            for batch in file.iter_batches(AT_ONCE, columns=self.columns):
                for values in batch.to_pylist():
                    number += 1
                    yield TableRow(number, f"row {number} ({self.path.name})", values)

    def __len__(self) -> int:
        return self._n


class _Frame:
    """The rows of a data frame, by number."""

    def __init__(self, frame: Any) -> None:
        self.frame = frame

    def __iter__(self) -> Iterator[dict[str, Any]]:
        names = list(self.frame.columns)
        return (dict(zip(names, values, strict=True)) for values in self.frame.itertuples(index=False, name=None))

    def __len__(self) -> int:
        return len(self.frame)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: self.frame[name].iat[index] for name in self.frame.columns}


def _saved(folder: Path, columns: Sequence[str]) -> Source:
    """A folder that `save_to_disk` wrote."""
    try:
        from datasets import load_from_disk
    except ImportError as error:
        raise ScoreError("reading a saved Hugging Face data set needs datasets: pip install datasets") from error
    if not ((folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()):
        raise ScoreError(f"the folder {os.fspath(folder)!r} holds no data set: expected one that save_to_disk wrote")
    return _hugging_face(
        load_from_disk(folder), columns, folder.name, {"source": "save_to_disk", "folder": folder.name}
    )


def _hugging_face(table: Any, columns: Sequence[str], name: str, about: dict[str, Any]) -> Source:
    if isinstance(table, Mapping):
        splits = [str(split) for split in table]
        raise ScoreError(
            f"this is {len(splits)} tables, the splits {', '.join(splits)}\n"
            f"  give one of them, as dataset[{next(iter(splits), 'train')!r}]"
        )
    if table.column_names is not None:
        _check(columns, table.column_names)
    if not hasattr(table, "_fingerprint"):  # a stream
        decoded = table.decode(False) if table.features is not None else table
        return Source(name, Streamed(_Named(decoded, table.features)), Path(), partial(dict, about))
    about = about | {"rows": len(table), "fingerprint": table._fingerprint}
    rows = table if table.format["type"] == "custom" else _Arrow(table.select_columns(list(dict.fromkeys(columns))))
    return Source(name, Listed(rows), Path(), partial(dict, about))


class _Arrow:
    """The rows of a `datasets.Dataset` as they are stored, so that no picture is decoded."""

    def __init__(self, table: Any) -> None:
        self.table, self.named = table.with_format("arrow"), partial(_with_names, features=table.features)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self.named(v) for batch in self.table.iter(AT_ONCE) for v in batch.to_pylist())

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.named(self.table[index].to_pylist()[0])


class _Named:
    """The rows of a stream."""

    def __init__(self, table: Any, features: Any) -> None:
        self.table, self.features = table, features

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (_with_names(values, self.features) for values in self.table)


def _with_names(values: dict[str, Any], features: Mapping[str, Any] | None) -> dict[str, Any]:
    """Class labels by name: the table stores their numbers, which would be taken for answers."""
    named = {name: f for name, f in (features or {}).items() if hasattr(f, "int2str")}
    return {
        name: named[name].int2str(value) if name in named and isinstance(value, int) and value >= 0 else value
        for name, value in values.items()
    }
