"""MMVP: pairs of pictures that CLIP takes for one another (Tong et al., CVPR 2024, arXiv:2401.06209).

As published (the data set MMVP/MMVP): `Questions.csv` with the columns Index (some copies: "lndex", with an l),
Question, Options, Correct Answer, and the picture `{Index}.jpg` of each row in `MMVP Images/`:

    1,Are the butterfly's wings closer to being open or closed?,(a) Open (b) Closed,(a)
    2,Are the butterfly's wings closer to being open or closed?,(a) Open (b) Closed,(b)

Rows 1 and 2 are a pair, 3 and 4, and so on. The question is put as in the authors' script: question, space, options.
The published answers to 99 and 100, 279 and 280 are reported to be swapped (issues 14 and 30 of tsb0601/MMVP); they
are read as the file has them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import ScoreError
from .dataset import DataSet, facts
from .pictures import folder_of, picture
from .problems import Bad, RowError, all_or_none
from .sample import Sample
from .table_rows import TableRow, sample_of, text
from .template import AS_IT_IS, check_template
from .text_files import Delimited, file_of

IMAGES = ("MMVP Images", "MMVP_Images", "MMVP Imgaes")  # the last is how the authors' script spells it
OPTIONS = re.compile(r"\(a\)\s*(?P<a>\S.*?)\s*\(b\)\s*(?P<b>\S.*?)\s*", re.DOTALL)


def mmvp(folder: str | os.PathLike[str], *, template: str = AS_IT_IS, on_bad: str = "refuse") -> DataSet:
    """MMVP's questions; the group is the pair, the answers are the letters "a" and "b".

    Args:
        folder: with `Questions.csv` and `MMVP Images/`.
        template: how to ask; {question} stands for the question with its options.
        on_bad: "refuse" or "skip", see `DataSet`; with one bad question its pair is left out whole.

    Raises:
        ScoreError: no such file or folder, a column is missing, or as in `DataSet`.
    """
    root = folder_of(folder, "MMVP")
    file = file_of(root / "Questions.csv", "MMVP questions")
    images = next((root / name for name in IMAGES if (root / name).is_dir()), None)
    if images is None:
        raise ScoreError(f"{os.fspath(root)!r} has no folder of pictures: expected {IMAGES[0]!r} beside Questions.csv")
    rows = Delimited(file)
    index = "Index" if "Index" in rows.columns else "lndex"
    lacking = [name for name in (index, "Question", "Options", "Correct Answer") if name not in rows.columns]
    if lacking:
        raise ScoreError(f"{file.name!r} has no column {', '.join(lacking)}, only {', '.join(rows.columns)}")
    return DataSet(
        "mmvp",
        _Pairs(rows),
        partial(_read, index=index, images=images, template=check_template(template)),
        describe=partial(_describe, file, images, template),
        on_bad=on_bad,
        per_unit=2,
        numbered=True,
    )


class _Pairs:
    """Rows two by two; a last one without a partner comes alone."""

    def __init__(self, rows: Delimited) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[list[TableRow]]:
        rows = iter(self.rows)
        for row in rows:
            yield [row, *([partner] if (partner := next(rows, None)) else [])]

    def __len__(self) -> int:
        return (len(self.rows) + 1) // 2

    def __getitem__(self, pair: int) -> list[TableRow]:
        return [self.rows[i] for i in range(2 * pair, min(2 * pair + 2, len(self.rows)))]


def _read(rows: list[TableRow], index: str, images: Path, template: str) -> list[Sample | Bad]:
    if len(rows) == 1:
        return [Bad(rows[0].where, "no partner", "the last row has no partner: rows come in pairs")]
    pair = f"mmvp/{rows[0].number}-{rows[1].number}"
    make = partial(_sample, index=index, pair=pair, images=images, template=template)
    return all_or_none([sample_of(row, partial(make, number=row.number)) for row in rows], [row.where for row in rows])


def _sample(values: Mapping[str, Any], index: str, number: int, pair: str, images: Path, template: str) -> Sample:
    if text(values, index) != str(number):
        raise RowError(
            "index and row differ", f"index {values[index]} stands in row {number}, so pictures and pairs are not sure"
        )
    question, options = text(values, "Question"), text(values, "Options")
    if not OPTIONS.fullmatch(options):
        raise RowError("no options", f"expected options as '(a) Open (b) Closed', given {options!r:.60}")
    answer = text(values, "Correct Answer").lower().strip("()")
    if answer not in ("a", "b"):
        raise RowError("no letter", f"the correct answer must be (a) or (b), given {values['Correct Answer']!r}")
    found, _ = picture(f"{number}.jpg", images)
    return Sample(
        id=f"mmvp/{number}",
        question=template.format(question=f"{question} {options}"),
        answer=answer,
        images=(found,),
        wrong="b" if answer == "a" else "a",
        group=pair,
    )


def _describe(file: Path, images: Path, template: str) -> dict[str, Any]:
    return {"kind": "mmvp", "files": [facts(file)], "images": images.name, "template": template}
