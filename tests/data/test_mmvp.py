"""MMVP's table, as published."""

import pytest

from lmm_lens.data import mmvp
from lmm_lens.errors import ScoreError
from tests.data.builders import mmvp_folder

ASKED = "Are the butterfly's wings closer to being open or closed?"


@pytest.mark.parametrize("header", ["Index", "lndex"])
def test_a_row_of_the_published_table_is_a_sample(tmp_path, header):
    root = mmvp_folder(tmp_path, header=header)
    samples = list(mmvp(root))
    assert [s.id for s in samples] == ["mmvp/1", "mmvp/2", "mmvp/3", "mmvp/4"]
    assert samples[0].question == f"{ASKED} (a) Open (b) Closed"
    assert [(s.answer, s.wrong) for s in samples] == [("a", "b"), ("b", "a")] * 2
    assert [s.group for s in samples] == ["mmvp/1-2", "mmvp/1-2", "mmvp/3-4", "mmvp/3-4"]
    assert [s.images for s in samples] == [(root / "MMVP Images" / f"{i}.jpg",) for i in range(1, 5)]
    assert len(mmvp(root)) == 4


def test_the_folder_of_the_authors_script_is_found_too(tmp_path):
    root = mmvp_folder(tmp_path)
    (root / "MMVP Images").rename(root / "MMVP Imgaes")
    assert len(list(mmvp(root))) == 4
    (root / "MMVP Imgaes").rename(root / "pictures")
    with pytest.raises(ScoreError, match=r"has no folder of pictures: expected 'MMVP Images' beside Questions.csv"):
        mmvp(root)


def line(index, options="(a) Open (b) Closed", answer="(a)", asked=ASKED):
    return f"{index},{asked},{options},{answer}"


GOOD = [line(1), line(2, answer="(b)")]


@pytest.mark.parametrize(
    ("lines", "counted", "message"),
    [
        ([line(3)], {"no partner": 1}, "row 3 (Questions.csv line 4): the last row has no partner"),
        (
            [line(3), line(5)],
            {"incomplete group": 1, "index and row differ": 1},
            "row 4 (Questions.csv line 5): index 5 stands in row 4",
        ),
        ([line(3, "Open or closed"), line(4)], {"no options": 1, "incomplete group": 1}, "given 'Open or closed'"),
        ([line(3), line(4, answer="(c)")], {"incomplete group": 1, "no letter": 1}, "must be (a) or (b), given '(c)'"),
        ([line(3, asked=""), line(4)], {"empty Question": 1, "incomplete group": 1}, "'Question' is empty"),
        ([line(3), line(4) + ",x"], {"incomplete group": 1, "broken row": 1}, "5 fields, but the header names 4"),
    ],
)
def test_a_pair_with_a_bad_row_is_left_out_whole(tmp_path, lines, counted, message):
    root = mmvp_folder(tmp_path, lines=[*GOOD, *lines])
    with pytest.raises(ScoreError, match=r"row \d \(Questions.csv line \d\)"):
        list(mmvp(root))
    data = mmvp(root, on_bad="skip")
    assert [s.id for s in data] == ["mmvp/1", "mmvp/2"]
    assert data.problems.by_reason == counted
    assert any(message in problem for problem in data.problems.first)


def test_a_missing_picture_takes_its_pair_along(tmp_path):
    root = mmvp_folder(tmp_path)
    (root / "MMVP Images" / "2.jpg").unlink()
    data = mmvp(root, on_bad="skip")
    assert [s.id for s in data] == ["mmvp/3", "mmvp/4"]
    assert data.problems.first == (
        "row 1 (Questions.csv line 2): it counts only together with another question, which is bad",
        "row 2 (Questions.csv line 3): the picture 2.jpg does not exist in MMVP Images",
    )


def test_a_row_lost_from_the_middle_shifts_no_picture(tmp_path):
    lines = [line(i) for i in (1, 2, 4, 5, 6)]
    data = mmvp(mmvp_folder(tmp_path, n=6, lines=lines), on_bad="skip")
    assert [s.id for s in data] == ["mmvp/1", "mmvp/2"]
    assert data.problems.by_reason == {"index and row differ": 2, "no partner": 1}


def test_pairs_stay_together_when_shuffled(tmp_path):
    groups = [s.group for s in mmvp(mmvp_folder(tmp_path, n=12)).shuffled(2)]
    assert groups[0::2] == groups[1::2]
    assert groups != sorted(groups, key=lambda group: int(group.split("/")[1].split("-")[0]))


def test_a_table_with_other_columns_is_refused(tmp_path):
    root = mmvp_folder(tmp_path)
    (root / "Questions.csv").write_text("Index,Question,Answer\n1,q,a\n")
    with pytest.raises(
        ScoreError, match=r"'Questions.csv' has no column Options, Correct Answer, only Index, Question"
    ):
        mmvp(root)
    (root / "Questions.csv").unlink()
    with pytest.raises(ScoreError, match="there is no file of MMVP questions"):
        mmvp(root)
