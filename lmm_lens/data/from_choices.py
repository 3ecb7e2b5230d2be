"""Questions with options to choose from: MMBench, SEED-Bench-2, Q-Bench, CV-Bench, ScienceQA, as published.

All are asked alike: the question, then a line "A. ..." for each option; the right answer is the letter.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import ScoreError, unknown
from .dataset import DataSet
from .pictures import folder_of, picture
from .problems import RowError
from .published import (
    PathLike,
    check_columns,
    choice_sample,
    data_set_of,
    decoded,
    listed,
    maybe_cell,
    maybe_text,
    number_of,
    read_row,
    until_missing,
)
from .sample import Sample
from .sources import open_source
from .table_rows import Listed, text, value_of
from .template import AS_IT_IS, check_template
from .text_files import Delimited, file_of, whole_json


def mmbench(path: PathLike, *, template: str = AS_IT_IS, on_bad: str = "refuse") -> DataSet:
    """MMBench (Liu et al., ECCV 2024, arXiv:2307.06281): a .tsv with the pictures in it, base64.

    Columns index, question, A to D, answer, category, image, and, where there is one, hint, which is put before the
    question. In circular files, index modulo 1,000,000 names the question that counts only together: the group.

    Args:
        path: as mmbench_dev_en_20231003.tsv; a split without answers cannot be read.
        template: how to ask.
        on_bad: "refuse" or "skip", see `DataSet`.

    Raises:
        ScoreError: no such file or column, or as in `DataSet`.
    """
    file = file_of(path, "MMBench questions")
    rows = Delimited(file, "\t")
    check_columns(file, rows.columns, ("index", "question", "A", "B", "answer", "image"))

    def make(values: Mapping[str, Any]) -> Sample:
        number = text(values, "index")
        hint = maybe_cell(values, "hint")
        return choice_sample(
            f"mmbench/{number}",
            "\n".join([*([hint] if hint else []), text(values, "question")]),
            until_missing([maybe_cell(values, letter) for letter in "ABCD"]),
            number_of(text(values, "answer")),
            template,
            images=[picture(decoded(text(values, "image")), Path())[0]],
            category=maybe_cell(values, "category"),
            group=f"mmbench/{int(number) % 1_000_000}" if number.isdigit() else None,
        )

    return data_set_of("mmbench", rows, make, file, template, on_bad)


def seed_bench(path: PathLike, images: PathLike, *, template: str = AS_IT_IS, on_bad: str = "refuse") -> DataSet:
    """SEED-Bench 1 and 2 (Li et al., arXiv:2307.16125, 2311.17092): one JSON with "questions" and "question_type".

    The picture is `data_id`, a path or a list of them; questions about videos name a segment and are bad rows here.

    Args:
        path: as SEED-Bench_v2_level1_2_3.json.
        images: the folder that `data_id` starts from.
        template, on_bad: as in `mmbench`.
    """
    file = file_of(path, "SEED-Bench questions")
    whole = whole_json(file)
    if not isinstance(whole, Mapping) or not isinstance(whole.get("questions"), list):
        raise ScoreError(f"{file.name!r} has no list of 'questions', as SEED-Bench's file has")
    kinds = whole.get("question_type") or {}
    names = {number: name for name, number in kinds.items()} if isinstance(kinds, Mapping) else {}
    folder = folder_of(images)

    def make(values: Mapping[str, Any]) -> Sample:
        if values.get("segment"):
            raise RowError("video", "the question is about a segment of a video")
        shown = value_of(values, "data_id")
        kind = values.get("question_type_id")
        return choice_sample(
            f"seed_bench/{text(values, 'question_id')}",
            text(values, "question"),
            until_missing([maybe_text(values, f"choice_{letter}") for letter in "abcd"]),
            number_of(text(values, "answer")),
            template,
            images=[picture(each, folder)[0] for each in (shown if isinstance(shown, list) else [shown])],
            category=names.get(kind, None if kind is None else str(kind)),
        )

    return data_set_of(
        "seed_bench", Listed(whole["questions"], f" ({file.name})"), make, file, template, on_bad, folder
    )


def q_bench(path: PathLike, images: PathLike, *, template: str = AS_IT_IS, on_bad: str = "refuse") -> DataSet:
    """Q-Bench's perception of low-level vision (Wu et al., ICLR 2024, arXiv:2309.14181): an array of JSON objects.

    Keys img_path, question, candidates, correct_ans; the category is the kind of question, `type`.

    Args:
        path: as llvisionqa_dev.json; the test split has no answers.
        images: the folder of its pictures.
        template, on_bad: as in `mmbench`.
    """
    file = file_of(path, "Q-Bench questions")
    folder = folder_of(images)

    def make(values: Mapping[str, Any]) -> Sample:
        options = value_of(values, "candidates")
        if not isinstance(options, list) or not all(isinstance(each, str) for each in options):
            raise RowError("no options", f"expected a list of texts as 'candidates', given {options!r:.60}")
        right = text(values, "correct_ans")
        if options.count(right) != 1:
            raise RowError("answer is no option", f"the right answer {right!r} is not one of {options!r:.80}")
        return choice_sample(
            f"q_bench/{text(values, 'img_path')}/{text(values, 'question')}",
            text(values, "question"),
            options,
            options.index(right),
            template,
            images=[picture(text(values, "img_path"), folder)[0]],
            category=str(values["type"]) if "type" in values else None,
        )

    return data_set_of("q_bench", listed(file), make, file, template, on_bad, folder)


def cv_bench(
    source: Any, *, images: PathLike | None = None, template: str = AS_IT_IS, on_bad: str = "refuse"
) -> DataSet:
    """CV-Bench (Tong et al., NeurIPS 2024, arXiv:2406.16860): counting, relation, depth, distance.

    Columns idx, question, choices, answer as "(C)", task, and the picture in `image`, or its path in `filename`.

    Args:
        source: its .parquet or .jsonl file, or a `datasets.Dataset` of it.
        images: the folder that `filename` starts from; by default the file's own.
        template, on_bad: as in `mmbench`.
    """
    opened = open_source(source, ["idx", "question", "choices", "answer"])
    folder = folder_of(images) if images is not None else opened.folder

    def make(values: Mapping[str, Any]) -> Sample:
        options = [str(each) for each in value_of(values, "choices")]
        given = values.get("image")
        shown = text(values, "filename") if given is None else given
        return choice_sample(
            f"cv_bench/{text(values, 'idx')}",
            text(values, "question"),
            options,
            number_of(text(values, "answer")),
            template,
            images=[picture(shown, folder, outside=given is not None and not isinstance(given, str))[0]],
            category=maybe_text(values, "task"),
        )

    def describe() -> dict[str, Any]:
        return {"kind": "cv_bench", **opened.describe(), "template": template}

    check_template(template)
    return DataSet("cv_bench", opened.rows, partial(read_row, make=make), describe=describe, on_bad=on_bad)


def scienceqa(
    problems: PathLike,
    images: PathLike,
    *,
    splits: PathLike | None = None,
    split: str = "test",
    template: str = AS_IT_IS,
    on_bad: str = "refuse",
) -> DataSet:
    """ScienceQA's questions with a picture (Lu et al., NeurIPS 2022, arXiv:2209.09513).

    Args:
        problems: problems.json, {id: {question, choices, answer, hint, image, subject, ...}}.
        images: the folder that holds `{split}/{id}/image.png`.
        splits: pid_splits.json; by default the split that each problem names.
        split: "train", "val", "test", or of `splits` any, as "minitest".
        template, on_bad: as in `mmbench`. Questions without a picture are no part of it.
    """
    file = file_of(problems, "ScienceQA problems")
    whole = whole_json(file)
    if not isinstance(whole, Mapping):
        raise ScoreError(f"{file.name!r} holds no problems by their ids")
    if splits is None:
        chosen = [name for name, each in whole.items() if isinstance(each, Mapping) and each.get("split") == split]
    else:
        listed = whole_json(file_of(splits, "ScienceQA splits"))
        if split not in listed:
            raise ScoreError(unknown("split of ScienceQA", split, list(listed)))
        chosen = listed[split]
    lacking = [name for name in chosen if name not in whole]
    if lacking:
        raise ScoreError(f"problem {lacking[0]} of the split {split!r} is not in {file.name!r}")
    rows = [{**whole[name], "id": name} for name in chosen if whole[name].get("image")]
    folder = folder_of(images)

    def make(values: Mapping[str, Any]) -> Sample:
        name, hint = text(values, "id"), maybe_text(values, "hint")
        right = value_of(values, "answer")
        if isinstance(right, bool) or not isinstance(right, int):
            raise RowError("no letter", f"expected the number of an option as 'answer', given {right!r}")
        where = f"{values.get('split', split)}/{name}/{values['image']}"
        return choice_sample(
            f"scienceqa/{name}",
            "\n".join([*([hint] if hint else []), text(values, "question")]),
            [str(each) for each in value_of(values, "choices")],
            right,
            template,
            images=[picture(where, folder)[0]],
            category=maybe_text(values, "subject"),
        )

    return data_set_of("scienceqa", Listed(rows, f" ({file.name})"), make, file, template, on_bad, folder)
