"""MME: two yes/no questions a picture, in 14 subtasks (Fu et al., arXiv:2306.13394).

As published, a folder a subtask. In most of them picture and text stand side by side; in some (artwork) pictures are
in `images/` and texts in `questions_answers_YN/`. A text has the name of its picture and two lines, each a question, a
tab, and Yes or No:

    existence/000000006040.jpg
    existence/000000006040.txt      Is there a refrigerator in this image? Please answer yes or no.<TAB>Yes
                                    Is there a donut in this image? Please answer yes or no.<TAB>No

The instruction is part of the question. Both answers must be right for acc+, so a picture is asked whole or not at all.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import ScoreError, unknown
from .dataset import DataSet
from .pictures import folder_of, picture
from .problems import Bad, RowError, all_or_none
from .sample import Sample
from .table_rows import TableRow, sample_of, text, yes_or_no
from .template import AS_IT_IS, check_template

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
SUBTASKS = PERCEPTION + COGNITION
PICTURES = (".jpg", ".jpeg", ".png")
INSIDE = ("MME_Benchmark_release_version", "MME_Benchmark")  # folders that the release wraps its subtasks in


@dataclass(frozen=True)
class _Pair:
    """A picture with its text; either may be missing."""

    subtask: str
    name: str
    picture: Path | None
    text: Path | None

    @property
    def where(self) -> str:
        return f"{self.subtask}/{(self.text or self.picture or Path(self.name)).name}"


def mme(
    folder: str | os.PathLike[str],
    *,
    subtasks: Sequence[str] | None = None,
    template: str = AS_IT_IS,
    on_bad: str = "refuse",
) -> DataSet:
    """MME's questions; the group is the picture, the category the subtask.

    Args:
        folder: that the subtasks' folders are in, or the release's folder around it.
        subtasks: some of the 14; by default those that are there.
        template: how to ask.
        on_bad: "refuse" or "skip", see `DataSet`; with one bad question its picture is left out whole.

    Raises:
        ScoreError: no such folder, no such subtask, or as in `DataSet`.
    """
    root = folder_of(folder, "MME")
    for name in INSIDE:
        if (root / name).is_dir():
            root = root / name
    chosen = _chosen(root, subtasks)
    pairs = [pair for subtask in chosen for pair in _pairs(root / subtask)]
    return DataSet(
        "mme",
        pairs,
        partial(_read, template=check_template(template)),
        describe=partial(_describe, pairs, chosen, template),
        on_bad=on_bad,
        per_unit=2,
        numbered=True,
    )


def _chosen(root: Path, subtasks: Sequence[str] | None) -> list[str]:
    there = [name for name in SUBTASKS if (root / name).is_dir()]
    if isinstance(subtasks, str):
        subtasks = [subtasks]
    for name in subtasks or ():
        if name not in SUBTASKS:
            raise ScoreError(unknown("subtask of MME", name, SUBTASKS))
        if name not in there:
            raise ScoreError(f"{root.name!r} has no folder of the subtask {name!r}, only {', '.join(there) or 'none'}")
    if not there:
        raise ScoreError(
            f"{os.fspath(root)!r} holds none of MME's subtasks: expected folders {', '.join(SUBTASKS[:4])}, ...\n"
            "  give the folder that they are in"
        )
    return there if subtasks is None else [name for name in SUBTASKS if name in subtasks]


def _pairs(folder: Path) -> list[_Pair]:
    """The pictures of a subtask with their texts, by name."""
    apart = (folder / "images").is_dir() and (folder / "questions_answers_YN").is_dir()
    images = folder / "images" if apart else folder
    texts = folder / "questions_answers_YN" if apart else folder
    pictures = {p.stem: p for p in sorted(images.iterdir()) if p.suffix.lower() in PICTURES}
    questions = {p.stem: p for p in sorted(texts.iterdir()) if p.suffix.lower() == ".txt"}
    names = sorted({*pictures, *questions})
    return [_Pair(folder.name, name, pictures.get(name), questions.get(name)) for name in names]


def _read(pair: _Pair, template: str) -> list[Sample | Bad]:
    if pair.text is None:
        return [Bad(pair.where, "no questions", "there is no text of this name with its questions")]
    if pair.picture is None:
        return [Bad(pair.where, "missing picture", f"there is no picture {pair.name} beside it")]
    rows = list(_rows(pair, pair.text))
    if len(rows) != 2:
        return [Bad(pair.where, "not two questions", f"a picture has two questions, this one {len(rows)}")]
    items = [sample_of(row, partial(_sample, pair=pair, number=row.number, template=template)) for row in rows]
    return all_or_none(items, [row.where for row in rows])


def _rows(pair: _Pair, file: Path) -> Iterator[TableRow]:
    """A question a row; blank lines are none."""
    number = 0
    for line, raw in enumerate(file.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        if not raw.strip():
            continue
        number += 1
        yield TableRow(number, f"{pair.where} line {line}", _values(raw))


def _values(raw: bytes) -> Mapping[str, Any] | RowError:
    try:
        fields = raw.decode().rstrip().split("\t")
    except UnicodeDecodeError:
        return RowError("not UTF-8", "the line is not UTF-8 text")
    if len(fields) != 2:
        return RowError("broken row", f"expected a question, a tab, and Yes or No, given {raw.decode()!r:.80}")
    return {"question": fields[0], "answer": fields[1]}


def _sample(values: Mapping[str, Any], pair: _Pair, number: int, template: str) -> Sample:
    answer = yes_or_no(values, "answer")
    found, _ = picture(pair.picture, Path(), outside=True)
    return Sample(
        id=f"mme/{pair.subtask}/{pair.name}/{number}",
        question=template.format(question=text(values, "question")),
        answer=answer,
        images=(found,),
        wrong="no" if answer == "yes" else "yes",
        group=f"mme/{pair.subtask}/{pair.name}",
        category=pair.subtask,
    )


def _describe(pairs: Sequence[_Pair], subtasks: Sequence[str], template: str) -> dict[str, Any]:
    """All texts count as one file."""
    digest, n_bytes = hashlib.sha256(), 0
    for pair in pairs:
        content = pair.text.read_bytes() if pair.text else b""
        n_bytes += len(content)
        digest.update(f"{pair.subtask}/{pair.name}/{len(content)}\n".encode() + content)
    files = [{"name": "all questions", "bytes": n_bytes, "sha256": digest.hexdigest()}]
    return {"kind": "mme", "files": files, "subtasks": list(subtasks), "template": template}
