"""Open questions: VQAv2, VizWiz, TextVQA, GQA, as published.

The right answer of a question that several people answered is what most of them said; `Sample.given` has all of them,
for the metric "vqa" of `lmm_lens.compare`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ScoreError
from .dataset import DataSet
from .pictures import folder_of, picture
from .problems import RowError
from .published import PathLike, data_set_of, listed, maybe_text
from .sample import Sample
from .table_rows import Listed, text, value_of
from .template import AS_IT_IS
from .text_files import file_of, whole_json


def vqav2(
    questions: PathLike,
    annotations: PathLike,
    images: PathLike,
    *,
    template: str = AS_IT_IS,
    on_bad: str = "refuse",
) -> DataSet:
    """VQAv2 (Goyal et al., CVPR 2017, arXiv:1612.00837); the category is the type of answer.

    Args:
        questions: as v2_OpenEnded_mscoco_val2014_questions.json.
        annotations: as v2_mscoco_val2014_annotations.json, with ten answers a question.
        images: the folder of COCO's pictures, `COCO_val2014_000000016631.jpg`, whose split the questions' file names.
        template: how to ask.
        on_bad: "refuse" or "skip", see `DataSet`.

    Raises:
        ScoreError: no such file, files that do not belong together, or as in `DataSet`.
    """
    file, answers = file_of(questions, "VQAv2 questions"), file_of(annotations, "VQAv2 annotations")
    asked, answered = _list_in(file, "questions"), _list_in(answers, "annotations")
    by_id = {each.get("question_id"): each for each in answered if isinstance(each, Mapping)}
    if asked and not any(isinstance(each, Mapping) and each.get("question_id") in by_id for each in asked):
        raise ScoreError(f"no question of {file.name!r} has an answer in {answers.name!r}: they are of other splits")
    whole = whole_json(file)
    split = whole.get("data_subtype", "val2014")
    folder = folder_of(images)

    def make(values: Mapping[str, Any]) -> Sample:
        number = value_of(values, "question_id")
        if number not in by_id:
            raise RowError("no answer", f"question {number} has no answer in {answers.name}")
        own = by_id[number]
        image = value_of(values, "image_id")
        if isinstance(image, bool) or not isinstance(image, int):
            raise RowError("no picture", f"expected a number as 'image_id', given {image!r:.60}")
        given = [text(each, "answer") for each in value_of(own, "answers")]
        return _answered(
            f"vqav2/{number}",
            text(values, "question"),
            given,
            template,
            picture(f"COCO_{split}_{image:012d}.jpg", folder)[0],
            right=maybe_text(own, "multiple_choice_answer"),
            category=maybe_text(own, "answer_type"),
        )

    return data_set_of("vqav2", Listed(asked, f" ({file.name})"), make, file, template, on_bad, folder)


def vizwiz(path: PathLike, images: PathLike, *, template: str = AS_IT_IS, on_bad: str = "refuse") -> DataSet:
    """VizWiz (Gurari et al., CVPR 2018, arXiv:1802.08218): pictures taken by blind people.

    Args:
        path: as val.json, an array of {image, question, answers, answer_type}.
        images: the folder of its pictures.
        template, on_bad: as in `vqav2`.
    """
    file, folder = file_of(path, "VizWiz questions"), folder_of(images)

    def make(values: Mapping[str, Any]) -> Sample:
        given = [text(each, "answer") for each in value_of(values, "answers")]
        name = text(values, "image")
        image, _ = picture(name, folder)
        kind = maybe_text(values, "answer_type")
        return _answered(f"vizwiz/{name}", text(values, "question"), given, template, image, category=kind)

    return data_set_of("vizwiz", listed(file), make, file, template, on_bad, folder)


def textvqa(path: PathLike, images: PathLike, *, template: str = AS_IT_IS, on_bad: str = "refuse") -> DataSet:
    """TextVQA (Singh et al., CVPR 2019, arXiv:1904.08920): pictures with text in them.

    Args:
        path: as TextVQA_0.5.1_val.json, {"data": [{question_id, image_id, question, answers}]}.
        images: the folder of `{image_id}.jpg`.
        template, on_bad: as in `vqav2`.
    """
    file, folder = file_of(path, "TextVQA questions"), folder_of(images)

    def make(values: Mapping[str, Any]) -> Sample:
        given = [str(each) for each in value_of(values, "answers")]
        image, _ = picture(f"{text(values, 'image_id')}.jpg", folder)
        return _answered(f"textvqa/{text(values, 'question_id')}", text(values, "question"), given, template, image)

    return data_set_of(
        "textvqa", Listed(_list_in(file, "data"), f" ({file.name})"), make, file, template, on_bad, folder
    )


def gqa(path: PathLike, images: PathLike, *, template: str = AS_IT_IS, on_bad: str = "refuse") -> DataSet:
    """GQA (Hudson & Manning, CVPR 2019, arXiv:1902.09506); the category is the structural type.

    Args:
        path: as testdev_balanced_questions.json, {id: {imageId, question, answer, types}}.
        images: the folder of `{imageId}.jpg`.
        template, on_bad: as in `vqav2`.
    """
    file, folder = file_of(path, "GQA questions"), folder_of(images)
    whole = whole_json(file)
    if not isinstance(whole, Mapping):
        raise ScoreError(f"{file.name!r} holds no questions by their ids")
    rows = [{**each, "id": name} if isinstance(each, Mapping) else each for name, each in whole.items()]

    def make(values: Mapping[str, Any]) -> Sample:
        kinds = values.get("types")
        answer = text(values, "answer")
        return Sample(
            id=f"gqa/{text(values, 'id')}",
            question=template.format(question=text(values, "question")),
            answer=answer,
            images=(picture(f"{text(values, 'imageId')}.jpg", folder)[0],),
            wrong={"yes": "no", "no": "yes"}.get(answer.lower()),
            category=kinds.get("structural") if isinstance(kinds, Mapping) else None,
        )

    return data_set_of("gqa", Listed(rows, f" ({file.name})"), make, file, template, on_bad, folder)


def _answered(
    name: str, question: str, given: Sequence[str], template: str, image: Any, right: str | None = None, **rest: Any
) -> Sample:
    if not given:
        raise RowError("no answer", "nobody's answer is there")
    most = right or Counter(given).most_common(1)[0][0]
    asked = template.format(question=question)
    return Sample(id=name, question=asked, answer=most, images=(image,), given=tuple(given), **rest)


def _list_in(file: Any, key: str) -> list[Any]:
    whole = whole_json(file)
    found = whole.get(key) if isinstance(whole, Mapping) else None
    if not isinstance(found, list):
        raise ScoreError(f"{file.name!r} has no list of {key!r}")
    return found
