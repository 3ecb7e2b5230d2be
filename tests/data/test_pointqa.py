"""PointQA in the authors' form and in Shikra's."""

import json

import pytest

from lmm_lens.data import pointqa
from lmm_lens.errors import ScoreError
from tests.data.builders import jsonl, png

BOX = {"x": 10, "y": 5, "w": 20, "h": 10}


def looktwice(image="2414753", ans="3", **changed):
    return {
        "id": image,
        "obj_type": "clocks",
        "bbox": BOX | {"names": ["clock"]},
        "point": {"x": 20, "y": 10},
        "obj_question": "How many clocks are there?",
        "super_question": "How many of these objects are there?",
        "general_question": "How many of these are there?",
        "ans": ans,
    } | changed


def local(image="2414753", **changed):
    return {
        "id": image,
        "question": "What color is the shirt?",
        "all_ans": ["white", "red"],  # a set: not in the order of the things
        "all_objs": [BOX, {"x": 0, "y": 0, "w": 4, "h": 6}],
        "points": [{"x": 20, "y": 10, "ans": "red"}, {"x": 2, "y": 3, "ans": "white"}],
    } | changed


@pytest.fixture
def images(tmp_path):
    png(tmp_path / "vg" / "VG_100K" / "2414753.jpg")
    png(tmp_path / "vg" / "VG_100K_2" / "31.jpg")
    return tmp_path / "vg"


def authors(tmp_path, questions, indent=None):
    path = tmp_path / "looktwiceqa_dataset.json"
    path.write_text(json.dumps(questions, indent=indent))
    return path


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        ("object", "How many clocks are there?"),
        ("super", "How many of these objects are there?"),
        ("general", "How many of these are there?"),
    ],
)
def test_looktwice_asks_for_a_count_in_three_ways(tmp_path, images, kind, asked, indent):
    path = authors(tmp_path, {"2414753": [looktwice()], "31": [looktwice("31", ans="1")]}, indent)
    first, second = pointqa(path, images, question=kind)
    assert (first.id, first.question, first.answer) == ("pointqa/2414753/1", asked, "3")
    assert first.wrong in ("2", "4")
    assert (second.answer, second.wrong) == ("1", "2")
    assert first.boxes == ((10, 5, 30, 15),)
    assert first.category == f"looktwice/{kind}"
    assert (first.images, second.images) == ((images / "VG_100K/2414753.jpg",), (images / "VG_100K_2/31.jpg",))
    assert len(pointqa(path, images)) == 2


def test_local_asks_about_each_thing_against_the_others(tmp_path, images):
    path = authors(tmp_path, {"2414753": [local()]})
    samples = list(pointqa(path, images))
    assert [(s.id, s.answer, s.wrong) for s in samples] == [
        ("pointqa/2414753/1/0", "red", "white"),
        ("pointqa/2414753/1/1", "white", "red"),
    ]
    assert [s.boxes for s in samples] == [((10, 5, 30, 15),), ((0, 0, 4, 6),)]
    assert {s.category for s in samples} == {"local"}
    assert sorted(s.id for s in pointqa(path, images).shuffled(0)) == [s.id for s in samples]


def test_a_split_chooses_the_images(tmp_path, images):
    path = authors(tmp_path, {"2414753": [looktwice()], "31": [looktwice("31")]})
    split = tmp_path / "looktwiceqa_test_imgs.json"
    split.write_text('["31"]')
    data = pointqa(path, images, split=split)
    assert [s.id for s in data] == ["pointqa/31/1"]
    assert data.settings["split"]["name"] == split.name
    split.write_text('["31", "99"]')
    with pytest.raises(
        ScoreError, match=r"1 of the 2 images of 'looktwiceqa_test_imgs.json' are not in .* the first 99"
    ):
        list(pointqa(path, images, split=split))
    split.write_text("{}")
    with pytest.raises(ScoreError, match="is no split: expected a list of image ids"):
        list(pointqa(path, images, split=split))


def shikra(number=0, **changed):
    return {
        "qa_id": number,
        "genome_id": "2414753",
        "file_path": "images/VG_100K/2414753.jpg",
        "answer": "2",
        "bbox": [10, 5, 30.5, 15],
        "point": [20, 10],
        "img_h": 30,
        "img_w": 40,
    } | changed


def test_shikra_s_lines_are_read_as_they_are(tmp_path, images):
    rows = [
        shikra(0, **{key: looktwice()[key] for key in ("obj_question", "super_question", "general_question")}),
        shikra(1, question="What color is it?", answer="red"),
    ]
    path = jsonl(tmp_path / "pointQA_twice_test.jsonl", rows)
    first, second = pointqa(path, images)
    assert (first.id, first.question, first.answer) == ("pointqa/0", "How many clocks are there?", "2")
    assert first.boxes == ((10, 5, 30.5, 15),)
    assert first.images == (images / "VG_100K/2414753.jpg",)
    assert (second.question, second.answer, second.wrong) == ("What color is it?", "red", None)
    with pytest.raises(ScoreError, match="has a question a line, which is of one split already"):
        pointqa(path, images, split=path)


def test_a_template_can_name_the_place(tmp_path, images):
    path = authors(tmp_path, {"2414753": [looktwice()]})
    (sample,) = pointqa(path, images, template="{question} [{x0:.2f}, {y0:.2f}, {x1:.2f}, {y1:.2f}]")
    assert sample.question == "How many clocks are there? [0.25, 0.17, 0.75, 0.50]"


def test_what_overhangs_the_picture_is_cut_off(tmp_path, images):
    path = authors(tmp_path, {"2414753": [looktwice(bbox={"x": -2, "y": 25, "w": 100, "h": 100})]})
    (sample,) = pointqa(path, images)
    assert sample.boxes == ((0, 25, 40, 30),)


@pytest.mark.parametrize(
    ("asked", "reason", "message"),
    [
        (looktwice(bbox={"x": 50, "y": 5, "w": 2, "h": 2}), "box outside", "is outside its picture of 40 x 30 pixels"),
        (looktwice(bbox={"x": 5, "y": 5, "w": 0, "h": 2}), "no box", "a box is (x0, y0, x1, y1) in pixels"),
        (looktwice(bbox={"x": 5}), "no box", "expected the box of the thing that is pointed at, given {'x': 5}"),
        (looktwice(bbox=None), "no box", "expected the box of the thing"),
        (looktwice(id="99"), "missing picture", "the picture 99.jpg does not exist in vg"),
        (looktwice(obj_question=""), "empty obj_question", "'obj_question' is empty"),
        (looktwice(ans=None), "missing value", "'ans' is empty"),
        (local(points=[]), "no box", "expected the box of the thing"),
        (local(all_objs=[BOX]), "no box", "expected the box of the thing"),
        ("text", "no row", "expected names with values, given 'text'"),
    ],
)
def test_a_bad_question_is_counted_and_named(tmp_path, images, asked, reason, message):
    path = authors(tmp_path, {"2414753": [looktwice(), asked]})
    data = pointqa(path, images, on_bad="skip")
    assert len(list(data)) == 1
    assert set(data.problems.by_reason) == {reason}
    assert data.problems.first[0].startswith("row 2 (looktwiceqa_dataset.json image 2414753 question 2): ")
    assert message in data.problems.first[0]
    with pytest.raises(ScoreError, match="image 2414753 question 2"):
        list(pointqa(path, images))


def test_a_file_of_another_form_is_refused(tmp_path, images):
    with pytest.raises(ScoreError, match="is not of PointQA: expected image ids, each with a list of questions"):
        list(pointqa(authors(tmp_path, [1, 2]), images))
    with pytest.raises(ScoreError, match="unknown question of PointQA 'objects', did you mean 'object'"):
        pointqa(authors(tmp_path, {}), images, question="objects")
