"""Any table by its column names: JSON lines, JSON, CSV, TSV, Parquet, Hugging Face data sets, data frames, lists."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from .dataset import DataSet
from .pictures import Size, boxes_in, folder_of, picture
from .problems import Bad, RowError
from .sample import BoxLike, Sample
from .sources import Source, open_source
from .table_rows import TableRow, missing, sample_of, text, value_of
from .template import AS_IT_IS, check_template


@dataclass(frozen=True)
class Columns:
    """Which column of a table is which part of a sample; None for parts that the table has not."""

    question: str = "question"
    answer: str = "answer"
    image: str | None = "image"
    wrong: str | None = None
    id: str | None = None
    group: str | None = None
    category: str | None = None
    boxes: str | None = None


def table(
    source: Any,
    *,
    question: str = "question",
    answer: str = "answer",
    image: str | None = "image",
    wrong: str | None = None,
    id: str | None = None,
    group: str | None = None,
    category: str | None = None,
    boxes: str | None = None,
    images: str | os.PathLike[str] | None = None,
    outside: bool | None = None,
    template: str = AS_IT_IS,
    name: str | None = None,
    on_bad: str = "refuse",
) -> DataSet:
    """A table's rows as samples.

    Args:
        source: a .jsonl, .json, .csv, .tsv or .parquet file, a folder written by `save_to_disk`, a `datasets.Dataset`
            or `IterableDataset`, a pandas DataFrame, or mappings that can be gone through more than once.
        question, answer, image, wrong, id, group, category, boxes: names of columns. A picture is a path, a PIL image,
            the bytes of a file, or a list of these; image=None for text alone. Boxes are one box (x0, y0, x1, y1) in
            pixels or a list of them, in text files also as JSON. Empty cells mean none for wrong, group, category and
            boxes.
        images: the folder that relative paths start from; by default the file's own, or else the working folder.
        outside: whether rows may name pictures anywhere: by absolute paths, "..", or links out of that folder. By
            default those of files may not, since a file may come from anybody.
        template: how to ask.
        name: of the data set; by default the file's, or "table". Without an id column, samples are "name/1", ...
        on_bad: "refuse" or "skip", see `DataSet`.

    Raises:
        ScoreError: no such file or column, a source that can be read only once, or as in `DataSet`.
    """
    columns = Columns(question, answer, image, wrong, id, group, category, boxes)
    opened = open_source(source, [column for column in asdict(columns).values() if column is not None])
    folder = folder_of(images) if images is not None else opened.folder
    label = name or opened.name
    outside = not isinstance(source, (str, os.PathLike)) if outside is None else outside
    return DataSet(
        label,
        opened.rows,
        partial(_read, columns=columns, folder=folder, outside=outside, name=label, template=check_template(template)),
        describe=partial(_describe, opened, columns, None if images is None else folder.name, template),
        on_bad=on_bad,
        numbered=id is None,
    )


def _read(row: TableRow, columns: Columns, folder: Path, outside: bool, name: str, template: str) -> list[Sample | Bad]:
    def make(values: Mapping[str, Any]) -> Sample:
        found = [picture(value, folder, outside, links=False) for value in _pictures(values, columns.image)]
        return Sample(
            id=text(values, columns.id) if columns.id else f"{name}/{row.number}",
            question=template.format(question=text(values, columns.question)),
            answer=text(values, columns.answer),
            images=tuple(image for image, _ in found),
            wrong=_maybe(values, columns.wrong),
            group=_maybe(values, columns.group),
            category=_maybe(values, columns.category),
            boxes=_boxes(values, columns.boxes, found[0][1] if found else None),
        )

    return [sample_of(row, make)]


def _maybe(values: Mapping[str, Any], column: str | None) -> str | None:
    """A text that may be empty, but whose column must be there."""
    if column is None or _blank(values, column):
        return None
    return text(values, column)


def _blank(values: Mapping[str, Any], column: str) -> bool:
    """Whether the column is there and the cell empty."""
    return column in values and (missing(values[column]) or (isinstance(values[column], str) and not values[column]))


def _pictures(values: Mapping[str, Any], column: str | None) -> list[Any]:
    if column is None:
        return []
    value = value_of(values, column)
    found = list(value) if isinstance(value, (list, tuple)) else [value]
    if not found or any(missing(each) or (isinstance(each, str) and not each) for each in found):
        raise RowError("missing value", f"{column!r} is empty")
    return found


def _boxes(values: Mapping[str, Any], column: str | None, size: Size | None) -> tuple[BoxLike, ...]:
    if column is None or _blank(values, column):
        return ()
    given: Any = value_of(values, column)
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except json.JSONDecodeError:
            raise RowError("no box", f"expected a box as [x0, y0, x1, y1], given {given!r:.60}") from None
    if not isinstance(given, Sequence):
        given = given.tolist() if hasattr(given, "tolist") else [given]
    if len(given) and not isinstance(given[0], (Sequence, Mapping)) and not hasattr(given[0], "tolist"):
        given = [given]
    if size is None:
        raise RowError("no picture", "there is a box but no picture that it could lie in")
    return boxes_in(given, size)


def _describe(source: Source, columns: Columns, images: str | None, template: str) -> dict[str, Any]:
    named = {part: column for part, column in asdict(columns).items() if column is not None}
    return {"kind": "table", **source.describe(), "columns": named, "images": images, "template": template}
