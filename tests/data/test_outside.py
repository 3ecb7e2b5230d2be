"""Tables may come from anybody: they name pictures below their folder alone, and put in questions as they are."""

import json
from pathlib import Path

import pytest
from PIL import Image

from lmm_lens import data
from lmm_lens.errors import ScoreError


@pytest.fixture
def table(tmp_path: Path):
    """Writes a table of one row into a folder of its own; there is a picture in it, and one outside."""
    (tmp_path / "rows").mkdir()
    for path in (tmp_path / "rows" / "in.png", tmp_path / "out.png"):
        Image.new("RGB", (4, 4)).save(path)
    (tmp_path / "rows" / "link.png").symlink_to(tmp_path / "out.png")
    (tmp_path / "rows" / "folder").symlink_to(tmp_path)

    def write(image: str) -> Path:
        line = {"question": "what?", "answer": "red", "image": image}
        (tmp_path / "rows" / "rows.jsonl").write_text(json.dumps(line), encoding="utf-8")
        return tmp_path / "rows" / "rows.jsonl"

    return write


@pytest.mark.parametrize("image", ["../out.png", "{root}/out.png", "link.png", "folder/out.png"])
def test_pictures_outside_are_refused_unless_asked_for(table, tmp_path, image):
    path = table(image.format(root=tmp_path))
    with pytest.raises(ScoreError, match=r"lies outside the folder of pictures 'rows': name a folder .* outside=True"):
        list(data.table(path))
    assert len(list(data.table(path, outside=True))) == 1
    skipped = data.table(path, on_bad="skip")
    with pytest.raises(ScoreError, match="picture outside 1"):
        list(skipped)


def test_a_folder_that_holds_them_all_may_be_named(table, tmp_path):
    path = table("rows/link.png")
    assert len(list(data.table(path, images=tmp_path))) == 1
    assert len(list(data.table(table("in.png")))) == 1


def test_rows_that_a_program_holds_may_name_what_they_like(table, tmp_path):
    rows = [{"question": "what?", "answer": "red", "image": str(tmp_path / "out.png")}]
    assert len(list(data.table(rows))) == 1
    with pytest.raises(ScoreError, match="lies outside"):
        list(data.table(rows, outside=False))


@pytest.mark.parametrize(
    "template", ["{question:>1000000000}", "{question!r}", "{question:s}", "{question:{question}}"]
)
def test_a_template_puts_a_question_in_as_it_is(table, template):
    with pytest.raises(ScoreError, match=r"says how \{question\} is to be formatted, and it is put in as it is"):
        data.table(table("in.png"), template=template)


@pytest.mark.parametrize("line", ['{"question": ' + "9" * 5_000 + "}", "[" * 10_000, '{"question": 1e999}'])
def test_numbers_and_nesting_without_end_are_bad_rows(table, line):
    path = table("in.png")
    path.write_text(line, encoding="utf-8")
    with pytest.raises(ScoreError) as refusal:
        list(data.table(path))
    assert "row 1 (rows.jsonl line 1)" in str(refusal.value) or "rows.jsonl" in str(refusal.value)
    assert len(str(refusal.value)) < 500
