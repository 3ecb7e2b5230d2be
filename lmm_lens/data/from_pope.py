"""POPE: is there such an object in the image? (Li et al., EMNLP 2023, arXiv:2305.10355)

As published (github.com/AoiDragon/POPE, output/coco): a JSON object a line, in files that are called
`{source}_pope_{setting}.json` with source coco, aokvqa or gqa and setting random, popular or adversarial:

    {"question_id": 1, "image": "COCO_val2014_000000016631.jpg", "text": "Is there a person in the image?",
     "label": "yes"}

and other keys that nobody needs. No instruction is prescribed; LLaVA's evaluation adds one, see `template`.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import ScoreError
from .dataset import DataSet, Joined, facts
from .pictures import folder_of, picture
from .problems import Bad
from .sample import Sample
from .table_rows import TableRow, sample_of, text, yes_or_no
from .template import AS_IT_IS, check_template
from .text_files import file_of, json_rows

PathLike = str | os.PathLike[str]


def pope(
    annotations: PathLike | Sequence[PathLike],
    images: PathLike,
    *,
    template: str = AS_IT_IS,
    on_bad: str = "refuse",
) -> DataSet:
    """POPE's questions; the category is the setting, the wrong answer the other of yes and no.

    Args:
        annotations: one or more of its files.
        images: the folder of COCO's (or GQA's) pictures.
        template: how to ask, as LLaVA's "{question}\\nAnswer the question using a single word or phrase."
        on_bad: "refuse" or "skip", see `DataSet`.

    Raises:
        ScoreError: no such file or folder, the same file twice, or as in `DataSet`.
    """
    given = [annotations] if isinstance(annotations, (str, os.PathLike)) else list(annotations)
    if not given:
        raise ScoreError("pope needs at least one file of annotations, as coco_pope_adversarial.json")
    files = [file_of(path, "POPE annotations") for path in given]
    folder = folder_of(images)
    categories = _categories(files)
    return DataSet(
        "pope",
        Joined({category: json_rows(path) for category, path in zip(categories, files, strict=True)}),
        partial(_read, folder=folder, template=check_template(template)),
        describe=partial(_describe, files, folder, template),
        on_bad=on_bad,
    )


def _categories(files: Sequence[Path]) -> list[str]:
    """The setting of each file; with its source where a setting comes more than once."""
    named = [re.fullmatch(r"(.+)_pope_(\w+)", path.stem) for path in files]
    settings = [match[2] if match else path.stem for match, path in zip(named, files, strict=True)]
    if max(Counter(settings).values()) > 1:
        settings = [f"{match[1]}_{match[2]}" if match else p.stem for match, p in zip(named, files, strict=True)]
    for setting, count in Counter(settings).items():
        if count > 1:
            raise ScoreError(f"{count} of the files of annotations are {setting!r}: give each once")
    return settings


def _read(unit: tuple[str, TableRow], folder: Path, template: str) -> list[Sample | Bad]:
    category, row = unit

    def make(values: Mapping[str, Any]) -> Sample:
        answer = yes_or_no(values, "label")
        name = text(values, "question_id")
        question = template.format(question=text(values, "text"))
        found, _ = picture(text(values, "image"), folder)
        return Sample(
            id=f"pope/{category}/{name}",
            question=question,
            answer=answer,
            images=(found,),
            wrong="no" if answer == "yes" else "yes",
            category=category,
        )

    return [sample_of(row, make)]


def _describe(files: Sequence[Path], folder: Path, template: str) -> dict[str, Any]:
    return {"kind": "pope", "files": [facts(path) for path in files], "images": folder.name, "template": template}
