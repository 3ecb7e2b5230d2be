"""Questions with options, as published, small, with planted defects."""

import base64
import io
import json

import pandas
import pytest
from PIL import Image

from lmm_lens.data import choice, cv_bench, mmbench, named, q_bench, scienceqa, seed_bench
from lmm_lens.errors import ScoreError
from tests.data.builders import png

MMBENCH = ("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image")


def encoded(color="red"):
    file = io.BytesIO()
    Image.new("RGB", (40, 30), color).save(file, "JPEG")
    return base64.b64encode(file.getvalue()).decode()


def mmbench_file(path, *changes):
    row = dict(zip(MMBENCH, ("7", "What is it?", "", "a cat", "a dog", "", "", "B", "object", encoded()), strict=True))
    rows = [row | {"index": str(number)} | change for number, change in enumerate(changes, 1)]
    lines = ["\t".join(MMBENCH), *("\t".join(each[name] for name in MMBENCH) for each in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def seed_file(path, *changes):
    question = {
        "question_id": "1",
        "question": "How many are there?",
        "choice_a": "1",
        "choice_b": "2",
        "choice_c": "3",
        "choice_d": "4",
        "answer": "C",
        "data_id": "a.png",
        "question_type_id": 5,
    }
    rows = [question | {"question_id": str(number)} | change for number, change in enumerate(changes, 1)]
    path.write_text(json.dumps({"questions": rows, "question_type": {"Instances Counting": 5}}))
    return path


def q_file(path, *changes):
    question = {
        "img_path": "a.png",
        "question": "Is it sharp?",
        "candidates": ["Yes", "No"],
        "correct_ans": "No",
        "type": 0,
    }
    path.write_text(json.dumps([question | change for change in changes]))
    return path


def cv_file(path, *changes):
    row = {
        "idx": 1,
        "task": "Count",
        "question": "How many?",
        "choices": ["1", "2", "3"],
        "answer": "(B)",
        "filename": "a.png",
    }
    rows = [row | {"idx": number} | change for number, change in enumerate(changes, 1)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def science_file(path, *changes):
    problem = {
        "question": "Which?",
        "choices": ["x", "y"],
        "answer": 1,
        "hint": "Look.",
        "image": "image.png",
        "split": "test",
        "subject": "natural science",
    }
    path.write_text(json.dumps({str(number): problem | change for number, change in enumerate(changes, 1)}))
    return path


def opened(kind, tmp_path, *changes, **options):
    for name in ("a.png", "b.png", "test/1/image.png", "test/2/image.png", "test/3/image.png"):
        png(tmp_path / name)
    if kind == "mmbench":
        return mmbench(mmbench_file(tmp_path / "m.tsv", *changes), **options)
    if kind == "seed_bench":
        return seed_bench(seed_file(tmp_path / "s.json", *changes), tmp_path, **options)
    if kind == "q_bench":
        return q_bench(q_file(tmp_path / "q.json", *changes), tmp_path, **options)
    if kind == "cv_bench":
        return cv_bench(cv_file(tmp_path / "c.jsonl", *changes), **options)
    return scienceqa(science_file(tmp_path / "p.json", *changes), tmp_path, **options)


@pytest.mark.parametrize(
    ("kind", "name", "question", "answer", "category"),
    [
        ("mmbench", "mmbench/1", "What is it?\nA. a cat\nB. a dog", "B", "object"),
        ("seed_bench", "seed_bench/1", "How many are there?\nA. 1\nB. 2\nC. 3\nD. 4", "C", "Instances Counting"),
        ("q_bench", "q_bench/a.png/Is it sharp?", "Is it sharp?\nA. Yes\nB. No", "B", "0"),
        ("cv_bench", "cv_bench/1", "How many?\nA. 1\nB. 2\nC. 3", "B", "Count"),
        ("scienceqa", "scienceqa/1", "Look.\nWhich?\nA. x\nB. y", "B", "natural science"),
    ],
)
def test_a_row_of_the_published_file_is_a_sample(tmp_path, kind, name, question, answer, category):
    data = opened(kind, tmp_path, {})
    (sample,) = data
    assert (sample.id, sample.question, sample.answer, sample.category) == (name, question, answer, category)
    assert len(sample.images) == 1
    assert sample.wrong == ("A" if len(sample.options) == 2 else None)
    assert [line[3:] for line in question.splitlines() if line[1:2] == "."] == list(sample.options)
    assert data.settings["kind"] == kind
    asked = next(iter(opened(kind, tmp_path, {}, template="{question}\nOne letter.")))
    assert asked.question == f"{question}\nOne letter."


@pytest.mark.parametrize(
    ("kind", "bad", "reason", "message"),
    [
        ("mmbench", {"answer": "E"}, "answer is no option", "the right answer is option E, but there are 2 options"),
        ("mmbench", {"answer": "both"}, "no letter", r"must be a letter, as A or \(A\), given 'both'"),
        ("mmbench", {"B": ""}, "no options", "expected 2 to 10 options, given 1"),
        ("mmbench", {"B": "", "C": "a cow"}, "option missing", "option B is missing, but there are others behind it"),
        ("mmbench", {"B": "nan", "C": "a cow", "answer": "C"}, "option missing", "option B is missing"),
        ("seed_bench", {"choice_c": None}, "option missing", "option C is missing"),
        ("mmbench", {"image": "%%%"}, "unreadable picture", "the picture is no base64"),
        ("mmbench", {"image": encoded()[:40]}, "unreadable picture", "cannot be read"),
        ("mmbench", {"question": " "}, "empty question", "'question' is empty"),
        ("seed_bench", {"segment": [1, 2]}, "video", "about a segment of a video"),
        ("seed_bench", {"data_id": "gone.png"}, "missing picture", "the picture gone.png does not exist"),
        ("seed_bench", {"data_id": "../x.png"}, "picture outside", "outside the folder of pictures"),
        ("q_bench", {"correct_ans": "Maybe"}, "answer is no option", "'Maybe' is not one of"),
        ("q_bench", {"candidates": "Yes"}, "no options", "a list of texts as 'candidates'"),
        ("cv_bench", {"answer": "(F)"}, "answer is no option", "option F, but there are 3 options"),
        ("cv_bench", {"choices": ["1"]}, "no options", "given 1"),
        ("scienceqa", {"answer": "1"}, "no letter", "the number of an option as 'answer', given '1'"),
        ("scienceqa", {"answer": 2}, "answer is no option", "option C, but there are 2 options"),
    ],
)
def test_a_bad_row_is_refused_or_counted_and_named(tmp_path, kind, bad, reason, message):
    with pytest.raises(ScoreError, match=rf"(?s)row 2 .*{message}"):
        list(opened(kind, tmp_path, {}, bad))
    data = opened(kind, tmp_path, {"question": "First?"}, bad, {"question": "Third?"}, on_bad="skip")
    assert len(list(data)) == 2
    assert data.problems.by_reason == {reason: 1}


def test_none_is_an_option_and_those_behind_it_keep_their_letters(tmp_path):
    (sample,) = opened("seed_bench", tmp_path, {"choice_b": "None"})
    assert sample.options == ("1", "None", "3", "4")
    assert sample.question.endswith("B. None\nC. 3\nD. 4")
    (sample,) = opened("seed_bench", tmp_path, {"choice_c": "None", "choice_d": ""})
    assert (sample.options, sample.answer) == (("1", "2", "None"), "C")


def test_several_pictures_and_circular_rows(tmp_path):
    (two,) = opened("seed_bench", tmp_path, {"data_id": ["a.png", "b.png"]})
    assert len(two.images) == 2
    rows = [{"index": "12"}, {"index": "1000012"}]
    assert [each.group for each in opened("mmbench", tmp_path, *rows)] == ["mmbench/12"] * 2


def test_what_has_no_picture_is_no_part_of_scienceqa(tmp_path):
    data = opened("scienceqa", tmp_path, {}, {"image": None}, {"split": "train"})
    assert [sample.id for sample in data] == ["scienceqa/1"]
    (tmp_path / "splits.json").write_text(json.dumps({"minitest": ["1"]}))
    options = {"splits": tmp_path / "splits.json", "split": "minitest"}
    assert len(list(opened("scienceqa", tmp_path, {}, **options))) == 1
    with pytest.raises(ScoreError, match=r"unknown split of ScienceQA 'test', .*\n  valid: minitest"):
        opened("scienceqa", tmp_path, {}, splits=tmp_path / "splits.json")


def test_files_of_another_kind_are_refused(tmp_path):
    (tmp_path / "x.json").write_text("[]")
    (tmp_path / "x.tsv").write_text("index\tquestion\n1\tWhat?\n")
    with pytest.raises(ScoreError, match=r"'x\.tsv' has no column A, B, answer, image, only index, question"):
        mmbench(tmp_path / "x.tsv")
    with pytest.raises(ScoreError, match=r"'x\.json' has no list of 'questions'"):
        seed_bench(tmp_path / "x.json", tmp_path)
    with pytest.raises(ScoreError, match=r"'x\.json' holds no problems by their ids"):
        scienceqa(tmp_path / "x.json", tmp_path)
    (tmp_path / "y.json").write_text("{}")
    with pytest.raises(ScoreError, match=r"'y\.json' holds one object, expected an array of questions"):
        q_bench(tmp_path / "y.json", tmp_path)


def test_cv_bench_is_read_from_a_table_with_pictures_in_it():
    row = {"idx": 3, "question": "How many?", "choices": ["1", "2"], "answer": "(A)", "image": Image.new("RGB", (9, 9))}
    (sample,) = cv_bench(pandas.DataFrame([row]))
    assert (sample.answer, sample.wrong, sample.images[0].size) == ("A", "B", (9, 9))


@pytest.mark.parametrize(
    ("said", "chosen"),
    [
        ("B", 1),
        ("b.", 1),
        ("(C) three", 2),
        ("A) one", 0),
        ("The answer is C", 2),
        ("Answer: B", 1),
        ("two of them", 1),
        ("A or B", None),
        ("(A) and (B)", None),
        ("D", None),
        ("", None),
        ("a big one", None),
    ],
)
def test_the_option_that_an_answer_chooses(said, chosen):
    assert choice(said, ["one", "two", "three"]) == chosen


def test_each_is_known_by_name(tmp_path):
    png(tmp_path / "a.png")
    assert len(named("q_bench", path=str(q_file(tmp_path / "q.json", {})), images=str(tmp_path))) == 1
