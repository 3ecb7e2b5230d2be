"""Pictures are looked at, not decoded; boxes lie within them."""

import io

import pytest
from PIL import Image

from lmm_lens.data import table
from lmm_lens.data.pictures import picture
from lmm_lens.data.problems import RowError
from lmm_lens.errors import ScoreError
from lmm_lens.prompts.sources import open_image
from tests.data.builders import png


def row(image, **more):
    return {"question": "q?", "answer": "x", "image": image} | more


def test_a_picture_is_a_path_an_image_or_the_bytes_of_a_file(tmp_path):
    path = png(tmp_path / "x.png", size=(7, 5))
    image, raw = Image.open(path), path.read_bytes()
    for value in (path, str(path), "x.png", image, raw, {"bytes": raw, "path": None}, {"bytes": None, "path": "x.png"}):
        found, size = picture(value, tmp_path)
        assert size == (7, 5)
        assert found in (path, image) or found.tobytes() == image.tobytes()


def test_a_photo_is_as_large_as_prompts_see_it(tmp_path):
    """Boxes are told in the picture as it is shown, which a camera held upright has turned."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (7, 5)).save(tmp_path / "photo.jpg", exif=exif)
    raw = (tmp_path / "photo.jpg").read_bytes()
    for value in ("photo.jpg", raw, Image.open(io.BytesIO(raw))):
        assert picture(value, tmp_path)[1] == open_image(raw).size == (5, 7)


def test_a_path_stays_a_path(tmp_path):
    path = png(tmp_path / "x.png")
    (sample,) = table(
        [
            row("x.png"),
        ],
        images=tmp_path,
    )
    assert sample.images == (path,)


def truncated(path):
    path.write_bytes(png(path).read_bytes()[:60])


def no_picture(path):
    path.write_text("<html>404</html>")


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_picture, "the picture x.png cannot be read: its format is unknown"),
        (empty, "the picture x.png cannot be read: its format is unknown"),
        (truncated, "the picture x.png cannot be read: "),
    ],
)
def test_a_file_that_is_no_whole_picture_is_a_bad_row(tmp_path, spoil, message):
    png(tmp_path / "good.png")
    spoil(tmp_path / "x.png")
    data = table([row("good.png"), row("x.png")], images=tmp_path, on_bad="skip")
    assert len(list(data)) == 1
    assert data.problems.by_reason == {"unreadable picture": 1}
    assert message in data.problems.first[0]


@pytest.mark.parametrize(
    ("value", "reason", "message"),
    [
        ("COCO_x.jpg", "missing picture", "the picture COCO_x.jpg does not exist in {folder}"),
        ("https://a.example/x.png", "no picture", "https://a.example/x.png is an address, expected a path"),
        (17, "no picture", "expected a picture or its path, given 17"),
        (None, "missing value", "'image' is empty"),
        ("", "missing value", "'image' is empty"),
        ([], "missing value", "'image' is empty"),
        (b"GIF8", "unreadable picture", "the picture of 4 bytes cannot be read"),
    ],
)
def test_what_is_no_picture_is_a_bad_row(tmp_path, value, reason, message):
    data = table([row(png(tmp_path / "good.png")), row(value)], images=tmp_path, on_bad="skip")
    assert len(list(data)) == 1
    assert data.problems.by_reason == {reason: 1}
    assert data.problems.first[0].startswith("row 2: " + message.format(folder=tmp_path.name))


def test_a_picture_that_goes_away_is_noticed_the_next_time(tmp_path):
    path = png(tmp_path / "x.png")
    data = table([row("x.png"), row(png(tmp_path / "y.png"))], images=tmp_path, on_bad="skip")
    assert len(list(data)) == 2
    path.unlink()
    assert len(list(data)) == 1
    no_picture(path)
    assert len(list(data)) == 1
    assert data.problems.by_reason == {"unreadable picture": 1}


def test_a_picture_is_not_decoded(tmp_path, monkeypatch):
    path = png(tmp_path / "x.png")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    assert picture(path, tmp_path)[1] == (40, 30)


def test_several_pictures_make_one_sample(tmp_path):
    paths = [png(tmp_path / name) for name in ("a.png", "b.png")]
    (sample,) = table([row(["a.png", "b.png"])], images=tmp_path)
    assert sample.images == tuple(paths)


@pytest.mark.parametrize("given", [[1, 2, 3, 4], [[1, 2, 3, 4]], "[1, 2, 3, 4]", "[[1.0, 2, 3, 4]]", (1, 2, 3, 4)])
def test_a_box_may_be_given_alone_or_in_a_list_or_as_json(tmp_path, given):
    (sample,) = table([row(png(tmp_path / "x.png"), where=given)], boxes="where")
    assert sample.boxes == ((1, 2, 3, 4),)


def test_boxes_may_be_missing_and_may_fill_the_picture(tmp_path):
    path = png(tmp_path / "x.png")
    rows = [
        row(path, where=value) for value in (None, "", float("nan"), [], [0, 0, 40, 30], [[0, 0, 1, 1], [2, 2, 4, 4]])
    ]
    assert [len(sample.boxes) for sample in table(rows, boxes="where")] == [0, 0, 0, 0, 1, 2]


@pytest.mark.parametrize(
    ("box", "reason", "message"),
    [
        ([0, 0, 41, 30], "box outside", "the box [0, 0, 41, 30] is outside its picture of 40 x 30 pixels"),
        ([-1, 0, 4, 3], "box outside", "the box [-1, 0, 4, 3] is outside"),
        ([50, 50, 60, 60], "box outside", "is outside its picture of 40 x 30 pixels"),
        ([4, 4, 4, 8], "no box", "a box is (x0, y0, x1, y1) in pixels with x0 < x1"),
        ([1, 2, 3], "no box", "a box is four numbers"),
        ("12, 3", "no box", "expected a box as [x0, y0, x1, y1], given '12, 3'"),
        ({"x": 1}, "no box", "a box is four numbers"),
        (7, "no box", "a box is four numbers"),
    ],
)
def test_a_box_that_is_none_or_outside_is_a_bad_row(tmp_path, box, reason, message):
    rows = [row(png(tmp_path / "x.png"), where=value) for value in ([0, 0, 1, 1], box)]
    data = table(rows, boxes="where", on_bad="skip")
    assert len(list(data)) == 1
    assert data.problems.by_reason == {reason: 1}
    assert message in data.problems.first[0]


def test_a_box_needs_a_picture():
    data = table([row(None, where=[0, 0, 1, 1])], image=None, boxes="where")
    with pytest.raises(ScoreError, match="there is a box but no picture"):
        list(data)


def test_a_picture_too_big_to_be_true_is_refused(tmp_path, monkeypatch):
    path = png(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(RowError, match="exceeds limit"):
        picture(io.BytesIO(path.read_bytes()).getvalue(), tmp_path)
