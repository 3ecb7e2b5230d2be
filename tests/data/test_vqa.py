"""Open questions as published, small, with planted defects; VQA's accuracy by hand; CHAIR by hand; MM-Vet."""

import json

import pytest

from lmm_lens.data import (
    chair,
    coco_captions,
    gqa,
    mm_vet,
    read_synonyms,
    textvqa,
    vizwiz,
    vqa_accuracy,
    vqav2,
    write_mm_vet,
)
from lmm_lens.data.chair import named_objects
from lmm_lens.errors import ScoreError
from tests.data.builders import png

NAME = "COCO_val2014_000000000042.jpg"


def vqa_files(root, annotated=True, **changed):
    png(root / NAME)
    asked = {"image_id": 42, "question": "What color?", "question_id": 42000} | changed
    answers = [{"answer": each, "answer_confidence": "yes"} for each in ["red"] * 6 + ["dark red"] * 4]
    said = {"question_id": 42000 if annotated else 7, "answers": answers, "multiple_choice_answer": "red"}
    (root / "q.json").write_text(json.dumps({"data_subtype": "val2014", "questions": [asked]}))
    (root / "a.json").write_text(json.dumps({"annotations": [said | {"answer_type": "other"}]}))
    return root / "q.json", root / "a.json", root


def test_vqav2(tmp_path):
    (sample,) = vqav2(*vqa_files(tmp_path))
    assert (sample.id, sample.question, sample.answer, sample.category) == (
        "vqav2/42000",
        "What color?",
        "red",
        "other",
    )
    assert sample.given.count("dark red") == 4
    with pytest.raises(ScoreError, match=r"no question of 'q\.json' has an answer in 'a\.json': they are of other"):
        vqav2(*vqa_files(tmp_path, annotated=False))
    with pytest.raises(ScoreError, match="expected a number as 'image_id', given '42'"):
        list(vqav2(*vqa_files(tmp_path, image_id="42")))
    with pytest.raises(ScoreError, match=r"COCO_val2014_000000000043\.jpg does not exist"):
        list(vqav2(*vqa_files(tmp_path, image_id=43)))


def test_none_is_what_most_people_said(tmp_path):
    files = vqa_files(tmp_path)
    answers = [{"answer": each} for each in ["nothing"] * 5 + ["none"] * 5]
    said = {"question_id": 42000, "answers": answers, "multiple_choice_answer": "none"}
    files[1].write_text(json.dumps({"annotations": [said]}))
    (sample,) = vqav2(*files)
    assert sample.answer == "none"


def test_vizwiz_and_textvqa(tmp_path):
    png(tmp_path / "v.jpg")
    answers = [{"answer": each} for each in ("milk", "milk", "soy milk")]
    (tmp_path / "v.json").write_text(json.dumps([{"image": "v.jpg", "question": "What is it?", "answers": answers}]))
    (sample,) = vizwiz(tmp_path / "v.json", tmp_path)
    assert (sample.id, sample.answer, len(sample.given)) == ("vizwiz/v.jpg", "milk", 3)
    rows = [{"question_id": 5, "image_id": "v", "question": "What does it say?", "answers": ["stop", "stop"]}]
    (tmp_path / "t.json").write_text(json.dumps({"data": rows}))
    (sample,) = textvqa(tmp_path / "t.json", tmp_path)
    assert (sample.id, sample.answer, sample.given) == ("textvqa/5", "stop", ("stop", "stop"))
    (tmp_path / "t.json").write_text(json.dumps({"data": [rows[0] | {"answers": []}]}))
    with pytest.raises(ScoreError, match=r"row 1 \(t\.json\): nobody's answer is there"):
        list(textvqa(tmp_path / "t.json", tmp_path))


def test_gqa(tmp_path):
    png(tmp_path / "n1.jpg")
    row = {"imageId": "n1", "question": "Is it red?", "answer": "yes", "types": {"structural": "verify"}}
    (tmp_path / "g.json").write_text(json.dumps({"07": row, "08": row | {"answer": "wood"}, "09": 3}))
    data = gqa(tmp_path / "g.json", tmp_path, on_bad="skip")
    found = [(each.id, each.wrong, each.category) for each in data]
    assert found == [("gqa/07", "no", "verify"), ("gqa/08", None, "verify")]
    assert data.problems.count == 1


# ---------------------------------------------------------------------- VQA's accuracy


@pytest.mark.parametrize(
    ("said", "given", "expected"),
    [
        ("red", ["red"] * 10, 1.0),
        ("red", ["red"] * 3 + ["blue"] * 7, (3 * 2 / 3 + 7 * 1) / 10),
        ("red", ["red"] * 2 + ["blue"] * 8, (2 * 1 / 3 + 8 * 2 / 3) / 10),
        ("red", ["red"] + ["blue"] * 9, (0 + 9 * 1 / 3) / 10),
        ("green", ["red"] * 10, 0.0),
        ("The Red.", ["red"] * 10, 1.0),
        ("two", ["2"] * 10, 1.0),
        ("dont know", ["don't know"] * 10, 1.0),
        ("t-shirt", ["t shirt"] * 10, 1.0),
        ("1,000", ["1000"] * 10, 1.0),
        ("2.5", ["25"] * 10, 0.0),
        ("red", ["red"], 1.0),
    ],
)
def test_an_answer_counts_by_the_people_who_agree(said, given, expected):
    assert vqa_accuracy(said, given) == pytest.approx(expected)


def test_without_people_there_is_no_accuracy():
    with pytest.raises(ScoreError, match="needs those of people"):
        vqa_accuracy("red", [])


# ---------------------------------------------------------------------- captions


def coco_files(root):
    png(root / "a.jpg")
    png(root / "b.jpg")
    instances = {
        "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}, {"id": 3, "file_name": "c.jpg"}],
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "person"}],
        "annotations": [{"image_id": 1, "category_id": 1}, {"image_id": 2, "category_id": 2}],
    }
    captions = {"annotations": [{"image_id": 1, "caption": "A puppy on a couch"}]}
    (root / "i.json").write_text(json.dumps(instances))
    (root / "c.json").write_text(json.dumps(captions))
    (root / "synonyms.txt").write_text("dog, puppy\nperson, man, woman\ncouch, sofa\nhot dog\n")
    return root / "i.json", root / "c.json", root


def test_chair_counts_what_is_named_and_not_there(tmp_path):
    data = coco_captions(*coco_files(tmp_path), on_bad="skip")
    samples = list(data)
    assert [(each.id, each.answer) for each in samples] == [("coco/1", "dog"), ("coco/2", "person")]
    assert data.problems.by_reason == {"no objects": 1}
    synonyms = read_synonyms(tmp_path / "synonyms.txt")
    found = chair(["Two puppies, a sofa and men eating hot dogs.", "A woman."], samples, synonyms)
    assert found.n_named.tolist() == [4, 1]  # dog, couch (which people wrote of), person, hot dog; person
    assert found.n_hallucinated.tolist() == [2, 0]
    assert (found.chair_i, found.chair_s, found.recall) == (2 / 5, 0.5, 1.0)
    silent = chair(["Nothing."] * 2, samples, synonyms)
    assert (silent.chair_i, silent.chair_s, silent.recall) == (0.0, 0.0, 0.0)
    with pytest.raises(ScoreError, match="given 1 captions and 2 samples"):
        chair(["A dog."], samples, synonyms)


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("knives", "knife"),
        ("leaves", "leaf"),
        ("children", "child"),
        ("policemen", "policeman"),
        ("women", "woman"),
        ("geese", "goose"),
        ("mice", "mouse"),
        ("wine glasses", "wine glass"),
        ("sandwiches", "sandwich"),
        ("skis", "skis"),
    ],
)
def test_plurals_are_what_they_are_of(said, name):
    assert named_objects(f"Two {said}.", {name: name}) == [name]
    assert named_objects(f"Two {said}.", {"cup": "cup"}) == []


def test_mm_vets_answers_are_written_for_its_judge(tmp_path):
    png(tmp_path / "v1_0.png")
    row = {"imagename": "v1_0.png", "question": "What is x?", "answer": "-1<AND>-5", "capability": ["ocr", "math"]}
    (tmp_path / "mm-vet.json").write_text(json.dumps({"v1_0": row}))
    (sample,) = mm_vet(tmp_path / "mm-vet.json", tmp_path)
    assert (sample.id, sample.answer, sample.category) == ("mm_vet/v1_0", "-1<AND>-5", "ocr, math")
    write_mm_vet(tmp_path / "out.json", [sample.id], ["x is -1 or -5"])
    assert json.loads((tmp_path / "out.json").read_text()) == {"v1_0": "x is -1 or -5"}
    with pytest.raises(ScoreError, match="'pope/1' is no question of MM-Vet's"):
        write_mm_vet(tmp_path / "out.json", ["pope/1"], ["yes"])
    with pytest.raises(ScoreError, match="one answer an id, given 0 for 1"):
        write_mm_vet(tmp_path / "out.json", [sample.id], [])
