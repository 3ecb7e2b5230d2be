"""What data sets in published formats share: options to choose from, texts that may be missing, rows of one file."""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import ScoreError
from .dataset import DataSet, facts
from .problems import Bad, RowError
from .sample import Sample
from .table_rows import Listed, TableRow, missing, sample_of, text
from .template import check_template
from .text_files import whole_json

PathLike = str | os.PathLike[str]
LETTERS = "ABCDEFGHIJ"


def choice_sample(
    name: str, question: str, options: Sequence[str], right: int, template: str, *, images: list[Any], **rest: Any
) -> Sample:
    """A question with its options, the right one by its number.

    Raises:
        RowError: fewer than two options, or a right one that is none.
    """
    if not 2 <= len(options) <= len(LETTERS):
        raise RowError("no options", f"expected 2 to {len(LETTERS)} options, given {len(options)}")
    if not 0 <= right < len(options):
        given = f"option {LETTERS[right]}" if 0 <= right < len(LETTERS) else f"option number {right}"
        raise RowError("answer is no option", f"the right answer is {given}, but there are {len(options)} options")
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return Sample(
        id=name,
        question=template.format(question="\n".join([question, *lines])),
        answer=LETTERS[right],
        images=tuple(images),
        wrong=LETTERS[1 - right] if len(options) == 2 else None,
        options=tuple(options),
        **rest,
    )


def until_missing(options: Sequence[str | None]) -> list[str]:
    """The options up to the first that is missing.

    Raises:
        RowError: there is one behind it, which would be asked by another letter than its own.
    """
    there = [option for option in options if option is not None]
    if any(option is not None for option in options[len(there) :]):
        lacking = LETTERS[options.index(None)]
        raise RowError("option missing", f"option {lacking} is missing, but there are others behind it")
    return there


def number_of(given: str) -> int:
    """The number of an option that is named by its letter, alone or in parentheses."""
    letter = given.strip("() .").upper()
    if len(letter) != 1 or letter not in LETTERS:
        raise RowError("no letter", f"the right answer must be a letter, as A or (A), given {given!r:.60}")
    return LETTERS.index(letter)


def maybe_text(values: Mapping[str, Any], name: str) -> str | None:
    """A text that may be missing or empty; "none" is what it says, an option or an answer."""
    value = values.get(name)
    return None if missing(value) or (isinstance(value, str) and not value.strip()) else text(values, name)


def maybe_cell(values: Mapping[str, Any], name: str) -> str | None:
    """The same of a file of text alone, where pandas writes an empty cell as nan, and Python as None."""
    found = maybe_text(values, name)
    return None if found is not None and found.lower() in ("nan", "none") else found


def decoded(encoded: str) -> bytes:
    """The bytes of base64."""
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise RowError("unreadable picture", f"the picture is no base64: {encoded[:20]!r}...") from None


def listed(file: Path) -> Listed:
    """The rows of an array in a JSON file."""
    whole = whole_json(file)
    if not isinstance(whole, list):
        raise ScoreError(f"{file.name!r} holds one object, expected an array of questions")
    return Listed(whole, f" ({file.name})")


def check_columns(file: Path, there: Sequence[str], wanted: Sequence[str]) -> None:
    """ScoreError for a column that is not there."""
    lacking = [name for name in wanted if name not in there]
    if lacking:
        raise ScoreError(f"{file.name!r} has no column {', '.join(lacking)}, only {', '.join(there)}")


def read_row(row: TableRow, make: Callable[[Mapping[str, Any]], Sample]) -> list[Sample | Bad]:
    """A row as a unit of a data set."""
    return [sample_of(row, make)]


def data_set_of(
    kind: str,
    rows: Any,
    make: Callable[[Mapping[str, Any]], Sample],
    file: Path,
    template: str,
    on_bad: str,
    images: Path | None = None,
) -> DataSet:
    """A data set of the rows of one file."""
    check_template(template)

    def describe() -> dict[str, Any]:
        folder = {} if images is None else {"images": images.name}
        return {"kind": kind, "files": [facts(file)], **folder, "template": template}

    return DataSet(kind, rows, partial(read_row, make=make), describe=describe, on_bad=on_bad)
