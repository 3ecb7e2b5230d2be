"""Tables in memory, of pandas and of Hugging Face."""

import io

import datasets
import numpy as np
import pandas
import pytest
from PIL import Image

from lmm_lens.data import table
from lmm_lens.errors import ScoreError
from tests.data.builders import png

COLORS = ("red", "green", "blue", "yellow")


@pytest.fixture(autouse=True)
def quiet():
    datasets.disable_progress_bars()


def picture(color):
    return Image.new("RGB", (6, 4), color)


@pytest.fixture
def hf():
    features = datasets.Features(
        {
            "question": datasets.Value("string"),
            "answer": datasets.ClassLabel(names=["no", "yes"]),
            "image": datasets.Image(),
            "images": datasets.List(datasets.Image()),
            "unused": datasets.Image(),
        }
    )
    rows = {
        "question": [f"Is it {color}?" for color in COLORS],
        "answer": [1, 0, 1, 0],
        "image": [picture(color) for color in COLORS],
        "images": [[picture(color)] * (i + 1) for i, color in enumerate(COLORS)],
        "unused": [{"bytes": b"no picture", "path": None}] * 4,
    }
    return datasets.Dataset.from_dict(rows, features=features)


def pixels(sample):
    return [image.convert("RGB").getpixel((0, 0)) for image in sample.images]


def expected(n=1):
    return [[picture(color).getpixel((0, 0))] * n for color in COLORS]


def test_a_hugging_face_table_is_read_by_column_names(hf):
    data = table(hf)
    samples = list(data)
    assert [(s.question, s.answer) for s in samples][:2] == [("Is it red?", "yes"), ("Is it green?", "no")]
    assert [pixels(s) for s in samples] == expected()
    assert len(data) == 4
    assert [s.question for s in data.shuffled(5)] != [s.question for s in samples]
    assert sorted(s.key for s in data.shuffled(5)) == sorted(s.key for s in samples)
    assert data.settings["fingerprint"] == hf._fingerprint


def test_a_column_may_hold_several_pictures(hf):
    assert [len(s.images) for s in table(hf, image="images")] == [1, 2, 3, 4]


def test_a_broken_picture_in_a_hugging_face_table_is_one_bad_row(hf):
    broken = hf.remove_columns("image").rename_column("unused", "image")
    data = table(datasets.concatenate_datasets([hf.select([0]), broken.select([1])]), on_bad="skip")
    assert len(list(data)) == 1
    assert data.problems.first == ("row 2: the picture of 10 bytes cannot be read: its format is unknown",)


def test_a_stream_of_hugging_face_gives_the_same_samples(hf):
    stream = table(hf.to_iterable_dataset())
    assert [s.key for s in stream] == [s.key for s in stream] == [s.key for s in table(hf)]
    with pytest.raises(ScoreError, match="is a stream and cannot be shuffled"):
        stream.shuffled(0)


def test_a_generated_stream_of_mappings_is_read(hf):
    stream = datasets.IterableDataset.from_generator(lambda: ({"question": "q", "answer": c} for c in COLORS))
    assert [s.answer for s in table(stream, image=None)] == list(COLORS)


def test_a_table_of_the_user_s_own_transform_is_read_as_it_comes(hf):
    changed = hf.remove_columns("unused").with_transform(
        lambda rows: {"question": rows["question"], "answer": ["x"] * len(rows["question"])}
    )
    assert [s.answer for s in table(changed, image=None)] == ["x"] * 4


def test_a_saved_table_is_read_from_its_folder(hf, tmp_path):
    hf.save_to_disk(tmp_path / "saved")
    data = table(tmp_path / "saved")
    assert [s.answer for s in data] == ["yes", "no", "yes", "no"]
    assert [pixels(s) for s in data] == expected()
    assert data.name == "saved"
    datasets.DatasetDict({"train": hf, "test": hf}).save_to_disk(tmp_path / "splits")
    with pytest.raises(ScoreError, match=r"this is 2 tables, the splits train, test\n  give one of them"):
        table(tmp_path / "splits")
    with pytest.raises(ScoreError, match="holds no data set: expected one that save_to_disk wrote"):
        table(tmp_path)


def test_a_parquet_file_of_hugging_face_is_read_with_its_pictures(hf, tmp_path):
    plain = hf.remove_columns("unused").cast_column("answer", datasets.Value("string"))
    plain.to_parquet(tmp_path / "t.parquet")
    data = table(tmp_path / "t.parquet")
    assert [pixels(s) for s in data] == expected()
    assert len(data) == 4
    with pytest.raises(ScoreError, match="is a stream and cannot be shuffled"):
        data.shuffled(0)
    (tmp_path / "t.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(ScoreError, match=r"'t.parquet' is no Parquet file"):
        table(tmp_path / "t.parquet")


def test_a_data_frame_is_read_by_column_names(tmp_path):
    png(tmp_path / "x.png")
    frame = pandas.DataFrame(
        {"question": ["q1", "q2", "q3"], "answer": [3, 4, None], "image": "x.png", "box": [[0, 0, 1, 1], None, None]}
    )
    data = table(frame, boxes="box", images=tmp_path, on_bad="skip")
    assert [(s.question, s.answer, len(s.boxes)) for s in data] == [("q1", "3", 1), ("q2", "4", 0)]
    assert data.problems.first == ("row 3: 'answer' is empty",)
    assert len(data) == 3
    assert sorted(s.id for s in data.shuffled(1)) == ["table/1", "table/2"]
    assert table(frame, image=None, on_bad="skip").settings["rows"] == 3


def test_boxes_of_arrays_are_read(tmp_path):
    path = png(tmp_path / "x.png")
    row = {"question": "q", "answer": "x", "image": path}
    for box in (np.array([0, 0, 1, 2]), np.array([[0, 0, 1, 2]]), [np.array([0, 0, 1, 2])]):
        assert next(iter(table([row | {"box": box}], boxes="box"))).boxes == ((0, 0, 1, 2),)


def test_a_column_that_is_not_there_is_an_error_at_once(hf):
    frame = pandas.DataFrame({"question": ["q"], "answer": ["x"]})
    for source in (hf, hf.to_iterable_dataset(), frame):
        with pytest.raises(ScoreError, match="unknown column 'answers', did you mean 'answer'"):
            table(source, answer="answers", image=None)
    with pytest.raises(ScoreError, match="expected each column once, given question, answer, answer"):
        table(pandas.DataFrame([["q", "x", "y"]], columns=["question", "answer", "answer"]), image=None)


def test_what_can_be_read_only_once_or_is_no_table_is_refused():
    with pytest.raises(ScoreError, match=r"generator can be gone through only once.*\n  give a list"):
        table(row for row in ({"question": "q", "answer": "x"},))
    for source in (17, {"question": ["q"]}, b"x"):
        with pytest.raises(ScoreError, match=f"expected a table, given {type(source).__name__}"):
            table(source)


def test_pictures_in_memory_are_kept_as_they_are():
    image = picture("red")
    raw = io.BytesIO()
    image.save(raw, "PNG")
    rows = [{"question": "q", "answer": "x", "image": value} for value in (image, raw.getvalue())]
    first, second = table(rows)
    assert first.images[0] is image
    assert pixels(first) == pixels(second)
