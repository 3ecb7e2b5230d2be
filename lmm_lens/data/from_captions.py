"""Free answers: COCO captions for CHAIR, and MM-Vet, whose judge is its authors'."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ScoreError
from .dataset import DataSet
from .pictures import folder_of, picture
from .problems import RowError
from .published import PathLike, data_set_of
from .sample import Sample
from .table_rows import Listed, text, value_of
from .template import AS_IT_IS
from .text_files import file_of, whole_json

DESCRIBE = "Please describe this image in detail."


def coco_captions(
    instances: PathLike,
    captions: PathLike,
    images: PathLike,
    *,
    question: str = DESCRIBE,
    on_bad: str = "refuse",
) -> DataSet:
    """Pictures of COCO to be described, for `lmm_lens.data.chair`; `Sample.given` is what people wrote.

    Args:
        instances: as instances_val2014.json, with the objects of every picture.
        captions: as captions_val2014.json.
        images: the folder of its pictures.
        question: what to ask of each.
        on_bad: "refuse" or "skip", see `DataSet`. A picture without any object has no answer, and is a bad row.

    Raises:
        ScoreError: no such file, or as in `DataSet`.
    """
    file, said = file_of(instances, "COCO instances"), file_of(captions, "COCO captions")
    whole, told, folder = whole_json(file), whole_json(said), folder_of(images)
    for name, key, content in ((file, "categories", whole), (file, "images", whole), (said, "annotations", told)):
        if not isinstance(content, Mapping) or not isinstance(content.get(key), list):
            raise ScoreError(f"{name.name!r} has no list of {key!r}, as COCO's file has")
    names = {each["id"]: each["name"] for each in whole["categories"]}
    objects: dict[Any, set[str]] = {}
    for each in whole.get("annotations", ()):
        objects.setdefault(each["image_id"], set()).add(names[each["category_id"]])
    wrote: dict[Any, list[str]] = {}
    for each in told["annotations"]:
        wrote.setdefault(each["image_id"], []).append(str(each["caption"]))

    def make(values: Mapping[str, Any]) -> Sample:
        number = value_of(values, "id")
        if number not in objects:
            raise RowError("no objects", f"picture {number} has no objects in {file.name}")
        shown, _ = picture(text(values, "file_name"), folder)
        there = ", ".join(sorted(objects[number]))
        return Sample(f"coco/{number}", question, there, (shown,), given=tuple(wrote.get(number, ())))

    rows = Listed(whole["images"], f" ({file.name})")
    return data_set_of("coco_captions", rows, make, file, AS_IT_IS, on_bad, folder)


def mm_vet(path: PathLike, images: PathLike, *, template: str = AS_IT_IS, on_bad: str = "refuse") -> DataSet:
    """MM-Vet (Yu et al., ICML 2024, arXiv:2308.02490); the category is the capabilities, joined by commas.

    Its score is a judgement of GPT-4's; `write_mm_vet` writes answers as its judge reads them.

    Args:
        path: mm-vet.json, {"v1_0": {imagename, question, answer, capability}}.
        images: the folder of its pictures.
        template: how to ask.
        on_bad: as in `coco_captions`.
    """
    file, folder = file_of(path, "MM-Vet questions"), folder_of(images)
    whole = whole_json(file)
    if not isinstance(whole, Mapping):
        raise ScoreError(f"{file.name!r} holds no questions by their ids")
    rows = [{**each, "id": name} if isinstance(each, Mapping) else each for name, each in whole.items()]

    def make(values: Mapping[str, Any]) -> Sample:
        able = values.get("capability") or []
        return Sample(
            id=f"mm_vet/{text(values, 'id')}",
            question=template.format(question=text(values, "question")),
            answer=text(values, "answer"),
            images=(picture(text(values, "imagename"), folder)[0],),
            category=", ".join(map(str, able)) or None,
        )

    return data_set_of("mm_vet", Listed(rows, f" ({file.name})"), make, file, template, on_bad, folder)


def write_mm_vet(path: str | os.PathLike[str], ids: Sequence[str], said: Sequence[str]) -> None:
    """Write answers as MM-Vet's judge reads them: {"v1_0": "..."}.

    Args:
        path: of the file.
        ids: of the samples, "mm_vet/v1_0".
        said: the answers, one each.

    Raises:
        ScoreError: ids of another data set, or not one answer each.
    """
    if len(ids) != len(said):
        raise ScoreError(f"expected one answer an id, given {len(said)} for {len(ids)}")
    other = [each for each in ids if not each.startswith("mm_vet/")]
    if other:
        raise ScoreError(f"{other[0]!r} is no question of MM-Vet's")
    answers = {name.removeprefix("mm_vet/"): text for name, text in zip(ids, said, strict=True)}
    Path(path).write_text(json.dumps(answers, ensure_ascii=False, indent=1), encoding="utf-8")
