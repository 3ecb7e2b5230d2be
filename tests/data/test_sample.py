"""One question: its checks, its key, its prompt."""

import pickle
from pathlib import Path

import pytest
from PIL import Image

from lmm_lens.data import Sample
from lmm_lens.errors import PromptError, ScoreError
from tests.data.builders import png


def test_a_sample_holds_tuples_and_says_itself_in_a_sentence(tmp_path):
    sample = Sample("a/1", "Open?", "yes", [png(tmp_path / "x.png")], "no", boxes=[[0, 0, 4, 5]])
    assert isinstance(sample.images, tuple)
    assert sample.boxes == ((0.0, 0.0, 4.0, 5.0),)
    assert repr(sample) == "Sample a/1: 'Open?' 'yes', not 'no', 1 picture"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"question": " "}, "a sample's question is a text and not empty, given ' '"),
        ({"answer": 3}, "a sample's answer is a text and not empty, given 3"),
        ({"wrong": "YES "}, "the wrong answer is the right one, 'yes'"),
        ({"boxes": [(0, 0, 1, 1)]}, "has boxes but no picture"),
        ({"boxes": [(3, 0, 1, 1)]}, "a box is .* with x0 < x1 and y0 < y1"),
        ({"boxes": [(0, 0, float("nan"), 1)]}, "a box is .* with x0 < x1"),
        ({"boxes": [(1, 2)]}, "a box is four numbers"),
    ],
)
def test_a_sample_that_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ScoreError, match=message):
        Sample(**({"id": "a/1", "question": "Open?", "answer": "yes"} | fields))


def test_the_key_tells_every_field_apart(tmp_path):
    path, other = png(tmp_path / "x.png"), png(tmp_path / "y.png")
    base = {"id": "a", "question": "q", "answer": "x", "images": (path,)}
    changes = [
        {},
        {"id": "b"},
        {"question": "q2"},
        {"answer": "z"},
        {"wrong": "w"},
        {"group": "w"},
        {"category": "w"},
        {"images": (other,)},
        {"images": (path, path)},
        {"images": (Image.open(path),)},
        {"boxes": ((0, 0, 1, 1),)},
    ]
    keys = [Sample(**(base | change)).key for change in changes]
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 16 and int(key, 16) >= 0 for key in keys)


def test_the_key_is_that_of_the_same_sample_in_another_folder(tmp_path):
    one, two = (png(tmp_path / folder / "x.png") for folder in ("here", "there"))
    assert Sample("a", "q", "x", (one,)).key == Sample("a", "q", "x", (two,)).key
    two.write_bytes(two.read_bytes() + b"more")
    assert Sample("a", "q", "x", (one,)).key != Sample("a", "q", "x", (two,)).key


def test_the_key_of_a_picture_is_that_of_its_pixels():
    red, blue = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    keys = [Sample("a", "q", "x", (image,)).key for image in (red, red.copy(), blue)]
    assert keys[0] == keys[1] != keys[2]


def test_a_picture_of_the_same_size_in_bytes_is_another_one(tmp_path):
    path = png(tmp_path / "x.png")
    before = Sample("a", "q", "x", (path,)).key
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert Sample("a", "q", "x", (path,)).key != before


def test_a_picture_that_is_gone_is_told_from_one_that_is_there(tmp_path):
    gone = Sample("a", "q", "x", (tmp_path / "x.png",))
    assert gone.key != Sample("a", "q", "x", (png(tmp_path / "x.png"),)).key
    assert gone.digests["question"] == Sample("b", "q", "y").digests["question"]


def test_a_sample_that_travels_finds_its_pictures_from_another_folder(tmp_path, monkeypatch):
    png(tmp_path / "pictures" / "x.png")
    monkeypatch.chdir(tmp_path)
    sample = Sample("a", "q", "x", (Path("pictures/x.png"),))
    packed, key = pickle.dumps(sample), sample.key
    monkeypatch.chdir("/")
    there = pickle.loads(packed)
    assert there.images == (tmp_path / "pictures" / "x.png",)
    assert there.key == key


def test_a_sample_makes_the_prompt_that_its_parts_make(lens, tmp_path):
    path = png(tmp_path / "x.png", size=(48, 48))
    made = Sample("a", "what color is the circle?", "red", (path,)).prompt(lens)
    by_hand = lens.prompt("what color is the circle?", images=path)
    assert made.inputs["input_ids"].tolist() == by_hand.inputs["input_ids"].tolist()
    assert made.inputs["pixel_values"].equal(by_hand.inputs["pixel_values"])
    assert Sample("a", "repeat the word red", "red").prompt(lens).images == ((),)


def test_a_picture_that_went_away_is_found_out_when_the_prompt_is_made(lens, tmp_path):
    sample = Sample("a", "what color is the circle?", "red", (tmp_path / "x.png",))
    with pytest.raises(PromptError, match=r"x.png"):
        sample.prompt(lens)
