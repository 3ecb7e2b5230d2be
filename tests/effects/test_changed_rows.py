"""A sweep that goes on never mixes old and new: rows that changed are named, refused or computed again."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lmm_lens import HeadEffects, HeadSet, data, head_effects
from lmm_lens.bundled import shapes
from lmm_lens.effects.scores import KIND
from lmm_lens.errors import LensError, ScoreError
from lmm_lens.runs import RunFolder

HEADS = HeadSet([(1, 4), (3, 4), (2, 5)], 6, 8)
N = 6


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Questions about pictures in files; BMP, so that every picture has as many bytes as any other."""
    lines = []
    for i, example in enumerate(shapes.examples(N, ["color"], seed=3)):
        example.image.save(tmp_path / f"{i}.bmp")
        lines.append({"id": f"q{i}", "question": example.question, "answer": example.answer, "image": f"{i}.bmp"})
    write(tmp_path, lines)
    return tmp_path


def write(folder: Path, lines: list[dict[str, Any]]) -> None:
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()]


def effects(lens: Any, table: Path, folder: Path | None = None, on_bad: str = "refuse", **options: Any) -> HeadEffects:
    rows = data.table(table / "rows.jsonl", on_bad=on_bad)
    return head_effects(lens, rows, "zero", "last", "log_prob", heads=HEADS, folder=folder, **options)


def same(one: HeadEffects, other: HeadEffects) -> bool:
    return one.ids == other.ids and torch.equal(one.per_prompt, other.per_prompt)


def other_picture(table: Path) -> str:
    with Image.open(table / "4.bmp") as given:
        size = given.size
    Image.new("RGB", size, "white").save(table / "4.bmp")
    return "picture"


def other_question(table: Path) -> str:
    lines = lines_of(table)
    lines[4]["question"] = "what color is the square?"
    write(table, lines)
    return "question"


def other_answer(table: Path) -> str:
    lines = lines_of(table)
    lines[4]["answer"] = next(word for word in ("red", "blue") if word != lines[4]["answer"])
    write(table, lines)
    return "answers"


@pytest.mark.parametrize("change", [other_picture, other_question, other_answer])
def test_a_row_that_changed_is_named_and_computed_again_if_asked(lens, table, tmp_path, change):
    before = effects(lens, table, tmp_path / "run")
    what = change(table)
    with pytest.raises(ScoreError, match=rf"item 4 \(rows/5\) is another than before: its {what} changed\n  give"):
        effects(lens, table, tmp_path / "run")
    assert same(HeadEffects.open(tmp_path / "run"), before), "nothing is lost by a refusal"
    again = effects(lens, table, tmp_path / "run", changed="recompute")
    assert same(again, effects(lens, table))
    kept = [0, 1, 2, 3, 5]
    assert torch.equal(again.per_prompt[kept], before.per_prompt[kept])
    assert not torch.equal(again.per_prompt[4], before.per_prompt[4])
    assert same(HeadEffects.open(tmp_path / "run"), again)


def test_a_row_that_is_gone_or_new_is_seen(lens, table, tmp_path):
    effects(lens, table, tmp_path / "run")
    lines = lines_of(table)
    write(table, lines[:-1])
    with pytest.raises(ScoreError, match=r"it ended after 5 items, and item 5 .* was finished before"):
        effects(lens, table, tmp_path / "run")
    shorter = effects(lens, table, tmp_path / "run", changed="recompute")
    assert same(shorter, effects(lens, table))
    write(table, lines[1:])
    with pytest.raises(ScoreError, match=r"item 0 .* is another than before: its .*picture.* changed"):
        effects(lens, table, tmp_path / "run")


def test_an_unknown_choice_is_refused(lens, table, tmp_path):
    with pytest.raises(ScoreError, match="unknown choice of changed 'recomute', did you mean 'recompute'"):
        effects(lens, table, tmp_path / "run", changed="recomute")


# ---------------------------------------------------------------------- rows that cannot be used


def no_token(line: dict[str, Any], table: Path) -> str:
    line["answer"] = "\u2603"
    return "no answer token"


def two_slots(line: dict[str, Any], table: Path) -> str:
    line["question"] = "<image> <image> what color is the circle?"
    return "no prompt"


def cut_short(line: dict[str, Any], table: Path) -> str:
    path = table / line["image"]
    Image.open(path).convert("RGB").resize((300, 300)).save(table / "cut.jpg", quality=95)
    (table / "cut.jpg").write_bytes((table / "cut.jpg").read_bytes()[:3000])
    line["image"] = "cut.jpg"
    return "no prompt"


def lone_surrogate(line: dict[str, Any], table: Path) -> str:
    line["question"] = "what color is the \ud800 circle?"
    return "no prompt"


def no_picture(line: dict[str, Any], table: Path) -> str:
    line["image"] = "gone.bmp"
    return "missing picture"


@pytest.mark.parametrize("spoil", [no_token, two_slots, cut_short, lone_surrogate, no_picture])
def test_a_row_that_cannot_be_used_is_left_out_counted_and_named(lens, table, tmp_path, spoil):
    whole, right = effects(lens, table), lines_of(table)
    lines = lines_of(table)
    reason = spoil(lines[2], table)
    write(table, lines)
    with pytest.raises((ScoreError, Exception)) as refused:
        effects(lens, table, tmp_path / "refused")
    assert "Traceback" not in str(refused.value)
    found = effects(lens, table, tmp_path / "run", on_bad="skip")
    assert found.problems.by_reason == {reason: 1}
    assert "1 bad row left out" in repr(found)
    assert len(found.left_out) == 1
    kept = [0, 1, 3, 4, 5]
    assert found.ids == tuple(whole.ids[i] for i in kept)
    assert torch.equal(found.per_prompt, whole.per_prompt[kept])
    assert same(effects(lens, table, tmp_path / "run", on_bad="skip"), found)
    found.save(tmp_path / "saved")
    assert HeadEffects.load(tmp_path / "saved").left_out == found.left_out
    # once the row is mended, it alone is computed
    write(table, right)
    assert same(effects(lens, table, tmp_path / "run", on_bad="skip"), whole)
    assert not HeadEffects.open(tmp_path / "run").left_out


def test_rows_that_all_cannot_be_used_are_an_error(lens, table, tmp_path):
    lines = lines_of(table)
    for line in lines:
        no_token(line, table)
    write(table, lines)
    with pytest.raises(ScoreError, match=r"no prompt can be used: 6 bad rows left out: no answer token 6\n  rows/1: "):
        effects(lens, table, tmp_path / "run", on_bad="skip")


def test_what_is_wrong_with_the_sweep_is_not_taken_for_a_bad_row(lens):
    """Leaving out bad rows leaves out no error of what was asked."""
    rows = data.table([{"question": "repeat the word red", "answer": "red"}], image=None, on_bad="skip")
    with pytest.raises(LensError, match="rows 'image' select no token of prompt row 0, so nothing would"):
        head_effects(lens, rows, rows="image", heads=HEADS)


def test_prompts_in_smaller_batches_are_told_also_where_a_run_goes_on(lens, table, tmp_path):
    whole = effects(lens, table, tmp_path / "run")
    assert "smaller batches" not in whole.how
    with RunFolder(tmp_path / "run", KIND, RunFolder.open(tmp_path / "run").about) as folder:
        folder.note(rows_per_pass=64)  # as where memory ran out
        for index in (1, 2):
            folder.drop(index)
    again = effects(lens, table, tmp_path / "run")
    assert again.how.endswith("2 of them in smaller batches, since memory ran out, so that last bits may differ")
    assert torch.allclose(again.per_prompt, whole.per_prompt, atol=1e-4)
    again.save(tmp_path / "saved")
    assert HeadEffects.load(tmp_path / "saved").how == again.how
