"""Tables by column names."""

import csv
import json

import pytest

from lmm_lens.data import table
from lmm_lens.errors import ScoreError
from tests.data.builders import png

FULL = {
    "ask": "What is it?",
    "say": "cat",
    "pic": "x.png",
    "not": "dog",
    "key": "k1",
    "pair": "p",
    "sort": "animals",
    "where": "[1, 2, 3, 4]",
}
NAMES = {
    "question": "ask",
    "answer": "say",
    "image": "pic",
    "wrong": "not",
    "id": "key",
    "group": "pair",
    "category": "sort",
    "boxes": "where",
}


def full_file(folder, kind):
    png(folder / "x.png")
    path = folder / f"t.{kind}"
    if kind == "json":
        path.write_text(json.dumps([FULL]))
    elif kind == "jsonl":
        path.write_text(json.dumps(FULL))
    elif kind == "parquet":
        import pandas

        pandas.DataFrame([FULL]).to_parquet(path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(FULL), delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerow(FULL)
    return path


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "tsv", "parquet"])
def test_every_kind_of_file_gives_the_same_sample(tmp_path, kind):
    path = full_file(tmp_path, kind)
    data = table(path, **NAMES)
    (sample,) = data
    assert (sample.id, sample.question, sample.answer, sample.wrong) == ("k1", "What is it?", "cat", "dog")
    assert (sample.group, sample.category, sample.boxes) == ("p", "animals", ((1, 2, 3, 4),))
    assert sample.images == (tmp_path / "x.png",)
    assert len(data) == 1
    assert data.settings["columns"] == NAMES
    assert data.settings["files"][0]["name"] == path.name
    assert str(tmp_path) not in json.dumps(data.settings)


def test_pictures_may_lie_in_another_folder(tmp_path):
    path = full_file(tmp_path / "here", "csv")
    (tmp_path / "here" / "x.png").rename(png(tmp_path / "there" / "x.png"))
    with pytest.raises(ScoreError, match=r"row 1 \(t.csv line 2\): the picture x.png does not exist in here"):
        list(table(path, **NAMES))
    (sample,) = table(path, **NAMES, images=tmp_path / "there")
    assert sample.images == (tmp_path / "there" / "x.png",)
    with pytest.raises(ScoreError, match=r"there is no folder .* of pictures"):
        table(path, **NAMES, images=tmp_path / "nowhere")


def test_without_an_id_column_rows_are_numbered():
    rows = [{"question": "q", "answer": str(i)} for i in range(2)]
    assert [s.id for s in table(rows, image=None)] == ["table/1", "table/2"]
    assert [s.id for s in table(rows, image=None, name="mine")] == ["mine/1", "mine/2"]


@pytest.mark.parametrize(
    ("value", "said"),
    [("two", "two"), (" two ", "two"), (2, "2"), (2.0, "2"), (2.5, "2.5"), (2**60 + 1, str(2**60 + 1))],
)
def test_a_number_is_an_answer_as_it_is_written(value, said):
    assert next(iter(table([{"question": "q", "answer": value}], image=None))).answer == said


@pytest.mark.parametrize("value", [True, None, float("nan"), float("inf"), [1], {}, ""])
def test_what_is_no_text_is_no_answer(value):
    with pytest.raises(ScoreError, match="row 1: "):
        list(table([{"question": "q", "answer": value}], image=None))


def test_optional_cells_may_be_empty_but_their_columns_must_be_there():
    rows = [{"question": "q", "answer": "x", "w": None}, {"question": "q", "answer": "x", "w": ""}]
    assert [s.wrong for s in table(rows, image=None, wrong="w")] == [None, None]
    with pytest.raises(ScoreError, match="row 1: there is no 'wrong'"):
        list(table([{"question": "q", "answer": "x"}], image=None, wrong="wrong"))
    with pytest.raises(ScoreError, match="row 1: there is no 'image', only 'question', 'answer'"):
        list(table([{"question": "q", "answer": "x"}]))
    with pytest.raises(ScoreError, match="row 1: there is no 'box'"):
        list(table([{"question": "q", "answer": "x"}], image=None, boxes="box"))


def test_a_wrong_answer_that_is_right_is_a_bad_row():
    with pytest.raises(ScoreError, match="row 1: the wrong answer is the right one, 'Yes'"):
        list(table([{"question": "q", "answer": "Yes", "wrong": "yes"}], image=None, wrong="wrong"))


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_a_column_that_a_file_has_not_is_an_error_at_once(tmp_path, kind):
    path = full_file(tmp_path, kind)
    with pytest.raises(ScoreError, match="unknown column 'question'"):
        table(path, on_bad="skip")
    with pytest.raises(ScoreError, match="unknown column 'keys', did you mean 'key'"):
        table(path, **NAMES | {"id": "keys"})
