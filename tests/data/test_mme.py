"""MME's folders, as published."""

import json

import pytest

from lmm_lens.data import mme
from lmm_lens.data.grading import mme_scores
from lmm_lens.errors import ScoreError
from tests.data.builders import MME_TEXT, mme_folder


def test_both_layouts_are_read(tmp_path):
    root = mme_folder(tmp_path)
    samples = list(mme(root))
    assert [sample.id for sample in samples] == [
        f"mme/{subtask}/{name}/{i}"
        for subtask, names in (("existence", ("000000006040", "000000006041")), ("artwork", ("10000", "10001")))
        for name in names
        for i in (1, 2)
    ]
    first, second, *_, last = samples
    assert first.question == "Is there a refrigerator in this image? Please answer yes or no."
    assert (first.answer, first.wrong, second.answer, second.wrong) == ("yes", "no", "no", "yes")
    assert (first.category, first.group) == ("existence", "mme/existence/000000006040")
    assert first.images == (root / "existence" / "000000006040.jpg",)
    assert last.images == (root / "artwork" / "images" / "10001.png",)
    assert len(mme(root)) == 8


def test_the_release_s_own_folders_are_looked_into(tmp_path):
    inner = tmp_path / "MME_Benchmark_release_version" / "MME_Benchmark"
    inner.mkdir(parents=True)
    mme_folder(inner)
    assert len(list(mme(tmp_path))) == 8
    assert len(list(mme(inner))) == 8


def test_subtasks_can_be_chosen(tmp_path):
    root = mme_folder(tmp_path)
    assert {s.category for s in mme(root, subtasks=["artwork"])} == {"artwork"}
    assert {s.category for s in mme(root, subtasks="existence")} == {"existence"}
    with pytest.raises(ScoreError, match="unknown subtask of MME 'ocr'"):
        mme(root, subtasks=["ocr"])
    with pytest.raises(ScoreError, match="has no folder of the subtask 'OCR', only existence, artwork"):
        mme(root, subtasks=["OCR"])
    with pytest.raises(ScoreError, match="holds none of MME's subtasks: expected folders existence, count"):
        mme(root / "eval_tool")


def spoil(root, lines=None, picture=True, text=True):
    file = root / "existence" / "000000006041.txt"
    if lines is not None:
        file.write_text(lines)
    if not picture:
        file.with_suffix(".jpg").unlink()
    if not text:
        file.unlink()


first, second = MME_TEXT.splitlines()
DEFECTS = [
    ({"lines": first}, {"not two questions": 1}, "existence/000000006041.txt: a picture has two questions, this one 1"),
    ({"lines": f"{MME_TEXT}{first}"}, {"not two questions": 1}, "this one 3"),
    ({"lines": ""}, {"not two questions": 1}, "this one 0"),
    (
        {"lines": f"{first}\n\nIs it? No"},
        {"incomplete group": 1, "broken row": 1},
        "existence/000000006041.txt line 3: expected a question, a tab, and Yes or No, given 'Is it? No'",
    ),
    (
        {"lines": f"Is it?\tMaybe\n{second}"},
        {"no yes or no": 1, "incomplete group": 1},
        "existence/000000006041.txt line 1: 'answer' must be yes or no, given 'Maybe'",
    ),
    ({"lines": f"\tYes\n{second}"}, {"empty question": 1, "incomplete group": 1}, "line 1: 'question' is empty"),
    ({"picture": False}, {"missing picture": 1}, "there is no picture 000000006041 beside it"),
    ({"text": False}, {"no questions": 1}, "existence/000000006041.jpg: there is no text of this name"),
]


@pytest.mark.parametrize(("defect", "counted", "message"), DEFECTS)
def test_a_picture_with_a_bad_question_is_left_out_whole(tmp_path, defect, counted, message):
    root = mme_folder(tmp_path)
    spoil(root, **defect)
    with pytest.raises(ScoreError, match="existence/000000006041"):
        list(mme(root))
    data = mme(root, on_bad="skip")
    samples = list(data)
    assert [s.group for s in samples if s.category == "existence"] == ["mme/existence/000000006040"] * 2
    assert data.problems.by_reason == counted
    assert any(message in line for line in data.problems.first)
    scores = mme_scores(
        [s.answer for s in samples],
        [s.answer for s in samples],
        [s.group for s in samples],
        [s.category for s in samples],
    )
    assert scores.total == 400


def test_an_unreadable_picture_is_a_bad_row(tmp_path):
    root = mme_folder(tmp_path)
    (root / "existence" / "000000006041.jpg").write_text("no picture")
    data = mme(root, on_bad="skip")
    assert len(list(data)) == 6
    assert data.problems.by_reason == {"unreadable picture": 2}


def test_pairs_stay_together_when_shuffled_and_taken(tmp_path):
    data = mme(mme_folder(tmp_path, n=4)).shuffled(1)
    groups = [sample.group for sample in data]
    assert groups[0::2] == groups[1::2]
    assert groups != sorted(groups)
    assert [s.group for s in data.take(4)] == groups[:4]
    with pytest.raises(ScoreError, match="expects a positive multiple of 2 of samples, given 3"):
        data.take(3)


def test_settings_change_with_any_question(tmp_path):
    root = mme_folder(tmp_path)
    before, again = mme(root).settings, mme(root).settings
    spoil(root, lines=MME_TEXT.replace("donut", "doughnut"))
    assert before == again != mme(root).settings
    assert before["subtasks"] == ["existence", "artwork"]
    assert str(tmp_path) not in json.dumps(before)
