"""POPE's files, as published."""

import hashlib
import json

import pytest

from lmm_lens.data import pope
from lmm_lens.errors import ScoreError
from tests.data.builders import jsonl, pope_folder, pope_row


def test_a_line_of_the_published_file_is_a_sample(tmp_path):
    annotations, images = pope_folder(tmp_path, [pope_row(1, image_id=16631), pope_row(2, "no")])
    first, second = pope(annotations, images)
    assert (first.id, first.question) == ("pope/adversarial/1", "Is there a person in the image?")
    assert (first.answer, first.wrong, first.category, first.group) == ("yes", "no", "adversarial", None)
    assert first.images == (images / "COCO_val2014_000000016631.jpg",)
    assert (second.answer, second.wrong) == ("no", "yes")
    assert len(pope(annotations, images)) == 2


def test_the_three_settings_are_told_apart(tmp_path):
    files = [pope_folder(tmp_path, [pope_row(1)], f"coco_pope_{name}.json")[0] for name in ("random", "popular")]
    data = pope(files, tmp_path / "val2014")
    assert [(s.id, s.category) for s in data] == [("pope/random/1", "random"), ("pope/popular/1", "popular")]
    assert sorted(s.id for s in data.shuffled(0)) == ["pope/popular/1", "pope/random/1"]
    other = pope_folder(tmp_path, [pope_row(1)], "gqa_pope_random.json")[0]
    assert [s.category for s in pope([files[0], other], tmp_path / "val2014")] == ["coco_random", "gqa_random"]
    with pytest.raises(ScoreError, match="2 of the files of annotations are 'coco_random': give each once"):
        pope([files[0], files[0]], tmp_path / "val2014")


def test_a_template_puts_the_question_as_an_evaluation_does(tmp_path):
    annotations, images = pope_folder(tmp_path, [pope_row(1, text="Is {this} it?")])
    (sample,) = pope(annotations, images, template="{question}\nAnswer with one word.")
    assert sample.question == "Is {this} it?\nAnswer with one word."
    for template, message in [
        ("Answer!", "has no place for the question"),
        ("{question} {answer}", "unknown place in a template 'answer'\n  valid: question"),
        ("{question", "cannot be read"),
        (None, "a template is a text"),
    ]:
        with pytest.raises(ScoreError, match=message):
            pope(annotations, images, template=template)


def without(key):
    return {name: value for name, value in pope_row(2).items() if name != key}


@pytest.mark.parametrize(
    ("row", "reason", "message"),
    [
        (without("label"), "missing key", "there is no 'label', only 'question_id', 'image', 'text'"),
        (without("image"), "missing key", "there is no 'image'"),
        (pope_row(2, "maybe"), "no yes or no", "'label' must be yes or no, given 'maybe'"),
        (pope_row(2, text=""), "empty text", "'text' is empty"),
        (pope_row(2, image="COCO_x.jpg"), "missing picture", "the picture COCO_x.jpg does not exist in val2014"),
        (pope_row(2, text=["a"]), "no text", "expected a text as 'text', given ['a']"),
        ('{"question_id": 2,', "broken JSON", "the line is no JSON"),
    ],
)
def test_a_bad_row_is_refused_or_counted_and_named(tmp_path, row, reason, message):
    annotations, images = pope_folder(tmp_path, [pope_row(1), row, pope_row(3)])
    place = f"row 2 ({annotations.name} line 2): {message}"
    with pytest.raises(ScoreError) as raised:
        list(pope(annotations, images))
    assert str(raised.value).startswith(place)
    assert 'on_bad="skip"' in str(raised.value)
    data = pope(annotations, images, on_bad="skip")
    assert [sample.id for sample in data] == ["pope/adversarial/1", "pope/adversarial/3"]
    assert data.problems.by_reason == {reason: 1}
    assert data.problems.first[0].startswith(place)


def test_an_id_twice_is_a_bad_row(tmp_path):
    annotations, images = pope_folder(tmp_path, [pope_row(1), pope_row(1, "no")])
    message = r"row 2 \(coco_pope_adversarial.json line 2\): a row before it has the id pope/adversarial/1 too"
    with pytest.raises(ScoreError, match=message):
        list(pope(annotations, images))


def test_settings_name_the_files_by_content_and_never_their_folders(tmp_path):
    annotations, images = pope_folder(tmp_path, [pope_row(1)])
    settings = pope(annotations, images, on_bad="skip").settings
    assert settings == {
        "name": "pope",
        "kind": "pope",
        "files": [
            {
                "name": "coco_pope_adversarial.json",
                "bytes": annotations.stat().st_size,
                "sha256": hashlib.sha256(annotations.read_bytes()).hexdigest(),
            }
        ],
        "images": "val2014",
        "template": "{question}",
        "on_bad": "skip",
    }
    assert str(tmp_path) not in json.dumps(settings)


def test_what_is_not_there_is_refused_at_once(tmp_path):
    annotations, images = pope_folder(tmp_path, [pope_row(1)])
    with pytest.raises(ScoreError, match="there is no file of POPE annotations"):
        pope(tmp_path / "none.json", images)
    with pytest.raises(ScoreError, match=r"there is no folder .*none' of pictures"):
        pope(annotations, tmp_path / "none")
    with pytest.raises(ScoreError, match="pope needs at least one file"):
        pope([], images)


def test_an_array_of_rows_reads_as_the_lines_do(tmp_path):
    annotations, images = pope_folder(tmp_path, [pope_row(1), pope_row(2, "no")])
    array = tmp_path / "again" / annotations.name
    array.parent.mkdir()
    array.write_text(json.dumps([json.loads(line) for line in annotations.read_text().splitlines()]))
    assert [s.key for s in pope(array, images)] == [s.key for s in pope(annotations, images)]
    jsonl(annotations, [pope_row(1)])
    assert len(list(pope(annotations, images))) == 1
