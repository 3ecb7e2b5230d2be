"""PointQA: questions about a thing that is pointed at (Mani et al. 2020, arXiv:2011.13681), on Visual Genome's images.

Two forms are read, told apart by what is in the file:

- The authors' (github.com/princetonvisualai/pointingqa, Datasets/): one JSON object, image id to a list of questions.
  LookTwice-QA (`looktwiceqa_dataset.json`) asks for a count in three ways:
  {"id", "bbox": {"x", "y", "w", "h"}, "obj_question", "super_question", "general_question", "ans", ...};
  Local-QA (`localqa_dataset.json`) one question of several things:
  {"id", "question", "all_objs": [{"x", "y", "w", "h"}], "points": [{"x", "y", "ans"}]}, object i being at point i.
  A split is a file with a list of image ids (`looktwiceqa_test_imgs.json`).
- Shikra's (arXiv:2306.15195, `pointQA_twice_test.jsonl`, `pointQA_local_test.jsonl`): an object a line, of one split:
  {"genome_id", "file_path", "answer", "bbox": [x0, y0, x1, y1], ...} with "question", or the three of LookTwice-QA.

The authors' README files describe their format but were not at hand; the keys above are those that their scripts write
and that several published readers take. Their General-QA was announced, not released, and is not read.

Visual Genome's boxes overhang their pictures by some pixels, so what overhangs is cut off.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from ..errors import ScoreError, unknown
from .dataset import DataSet, facts
from .pictures import boxes_in, folder_of, picture
from .problems import Bad, RowError
from .sample import Sample, plain
from .table_rows import TableRow, sample_of, text
from .template import AS_IT_IS, check_template
from .text_files import JsonLines, file_of, whole_json

QUESTIONS = {"object": "obj_question", "super": "super_question", "general": "general_question"}
PLACES = ("question", "x0", "y0", "x1", "y1")
VISUAL_GENOME = ("", "VG_100K", "VG_100K_2", "images/VG_100K", "images2/VG_100K_2")  # the parts it is downloaded in


def pointqa(
    annotations: str | os.PathLike[str],
    images: str | os.PathLike[str],
    *,
    question: str = "object",
    split: str | os.PathLike[str] | None = None,
    template: str = AS_IT_IS,
    on_bad: str = "refuse",
) -> DataSet:
    """PointQA's questions; the box is the thing that is pointed at, the category the part and the way of asking.

    Nothing marks the thing in the picture. "general" ("How many of these are there?") and Local-QA cannot be answered
    without a mark: draw one, or name the place in the template.

    The wrong answer is, in Local-QA, that of another thing of the same kind in the picture; in LookTwice-QA a count one
    more or one less, which is our own choice.

    Args:
        annotations: a file in one of the two forms.
        images: the folder of Visual Genome's pictures, or the one that VG_100K and VG_100K_2 are in.
        question: of LookTwice-QA: "object" (how many clocks), "super" (how many of these vehicles) or "general".
        split: of the authors' form: a file with the ids of the images to ask about; by default all.
        template: how to ask; beside {question} it may have {x0}, {y0}, {x1}, {y1}, the box in 0..1 of the picture,
            as "{question} [{x0:.2f}, {y0:.2f}, {x1:.2f}, {y1:.2f}]".
        on_bad: "refuse" or "skip", see `DataSet`.

    Raises:
        ScoreError: no such file, folder or question, a file of another form, or as in `DataSet`.
    """
    if question not in QUESTIONS:
        raise ScoreError(unknown("question of PointQA", question, QUESTIONS))
    file, folder = file_of(annotations, "PointQA annotations"), folder_of(images)
    chosen = file_of(split, "image ids") if split is not None else None
    lines = _is_lines(file)
    if lines and chosen:
        raise ScoreError(f"{file.name!r} has a question a line, which is of one split already: leave split out")
    return DataSet(
        "pointqa",
        JsonLines(file) if lines else _Authors(file, chosen),
        partial(_read, folder=folder, kind=question, template=check_template(template, PLACES)),
        describe=partial(_describe, file, folder, question, chosen, template),
        on_bad=on_bad,
    )


def _is_lines(file: Path) -> bool:
    """Whether a file has a question a line; the authors' one object has lists of them as its values."""
    values = next(iter(JsonLines(file)), TableRow(0, "", {})).values
    return not isinstance(values, RowError) and not all(isinstance(value, list) for value in values.values())


class _Authors:
    """A row for each thing that the authors' file asks about.

    Args:
        file: theirs.
        split: a file of image ids.
    """

    def __init__(self, file: Path, split: Path | None) -> None:
        self.file, self.split = file, split

    @cached_property
    def _rows(self) -> list[tuple[str, int, int | None]]:
        """(image id, number of the question, number of the thing) of each row."""
        found: list[tuple[str, int, int | None]] = []
        for image in self._ids():
            for i, asked in enumerate(self._questions[image]):
                points = asked.get("points") if isinstance(asked, dict) else None
                things = range(len(points)) if isinstance(points, list) and points else (None,)
                found += [(image, i, thing) for thing in things]
        return found

    @cached_property
    def _questions(self) -> dict[str, list[Any]]:
        whole = whole_json(self.file)
        if not isinstance(whole, dict) or not all(isinstance(asked, list) for asked in whole.values()):
            raise ScoreError(
                f"{self.file.name!r} is not of PointQA: expected image ids, each with a list of questions, "
                "or a question a line"
            )
        return whole

    def _ids(self) -> list[str]:
        if self.split is None:
            return list(self._questions)
        ids = whole_json(self.split)
        if not isinstance(ids, list):
            raise ScoreError(f"{self.split.name!r} is no split: expected a list of image ids")
        ids = [str(image) for image in ids]
        absent = [image for image in ids if image not in self._questions]
        if absent:
            raise ScoreError(
                f"{len(absent)} of the {len(ids)} images of {self.split.name!r} are not in {self.file.name!r}, "
                f"the first {absent[0]}\n  give the split of this data set"
            )
        return ids

    def __iter__(self) -> Iterator[TableRow]:
        return (self[i] for i in range(len(self)))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> TableRow:
        image, i, thing = self._rows[index]
        asked = self._questions[image][i]
        where = f"row {index + 1} ({self.file.name} image {image} question {i + 1})"
        if not isinstance(asked, dict):
            return TableRow(index + 1, where, RowError("no row", f"expected names with values, given {asked!r:.60}"))
        values = dict(asked)
        if "all_objs" in asked or "points" in asked:
            values |= _one_of(asked, thing)
        return TableRow(
            index + 1, where, values | {"qa_id": "/".join(str(x) for x in (image, i + 1, thing) if x is not None)}
        )


def _one_of(asked: Mapping[str, Any], thing: int | None) -> dict[str, Any]:
    """Local-QA's question about one of its things, in the words of the other forms."""
    things, points = asked.get("all_objs"), asked.get("points")
    if thing is None or not isinstance(things, list) or not isinstance(points, list) or len(things) != len(points):
        return {"bbox": None}
    answers = [point.get("ans") if isinstance(point, dict) else None for point in points]
    others = [other for other in answers if other is not None and other != answers[thing]]
    return {"bbox": things[thing], "ans": answers[thing], "wrong": others[0] if others else None}


def _read(row: TableRow, folder: Path, kind: str, template: str) -> list[Sample | Bad]:
    return [sample_of(row, partial(_sample, number=row.number, folder=folder, kind=kind, template=template))]


def _sample(values: Mapping[str, Any], number: int, folder: Path, kind: str, template: str) -> Sample:
    local = "question" in values
    asked = text(values, "question" if local else QUESTIONS[kind])
    corners = _corners(values)
    answer = text(values, "ans" if "ans" in values else "answer")
    file = text(values, "file_path") if "file_path" in values else f"{_image_id(values)}.jpg"
    found, (width, height) = picture(_find(folder, file), folder)
    (box,) = boxes_in([corners], (width, height), cut=True)
    x0, y0, x1, y1 = box[0] / width, box[1] / height, box[2] / width, box[3] / height
    name = str(values.get("qa_id", number))
    return Sample(
        id=f"pointqa/{name}",
        question=template.format(question=asked, x0=x0, y0=y0, x1=x1, y1=y1),
        answer=answer,
        images=(found,),
        wrong=_other(values.get("wrong"), answer) if local else _neighbour(answer, name),
        category="local" if local else f"looktwice/{kind}",
        boxes=(box,),
    )


def _image_id(values: Mapping[str, Any]) -> str:
    return text(values, "genome_id" if "genome_id" in values else "id")


def _find(folder: Path, file: str) -> str:
    """The path from the folder to a picture, whichever of Visual Genome's parts it is in."""
    places = [file, *(os.path.join(part, Path(file).name) for part in VISUAL_GENOME)]
    return next((place for place in places if (folder / place).is_file()), file)


def _corners(values: Mapping[str, Any]) -> list[float]:
    """A box as corners: the authors give x, y, width and height by name, Shikra the corners."""
    box = values.get("bbox")
    if isinstance(box, Mapping) and {"x", "y", "w", "h"} <= set(box):
        x, y, w, h = (box[name] for name in "xywh")
        if all(isinstance(number, (int, float)) for number in (x, y, w, h)):
            return [x, y, x + w, y + h]
    elif isinstance(box, list) and len(box) == 4:
        return box
    raise RowError("no box", f"expected the box of the thing that is pointed at, given {box!r:.60}")


def _other(answer: Any, right: str) -> str | None:
    return str(answer) if answer is not None and plain(str(answer)) != plain(right) else None


def _neighbour(answer: str, name: str) -> str | None:
    """A count beside this one, from 1 on, up or down by a checksum of the name; None for what is no count."""
    if not answer.isdecimal():
        return None
    up = int(answer) <= 1 or zlib.crc32(name.encode()) % 2 == 0
    return str(int(answer) + (1 if up else -1))


def _describe(file: Path, folder: Path, question: str, split: Path | None, template: str) -> dict[str, Any]:
    about = {"kind": "pointqa", "files": [facts(file)], "images": folder.name, "question": question}
    return about | {"split": facts(split) if split else None, "template": template}
