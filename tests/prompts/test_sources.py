"""A picture is the same picture wherever it comes from; nothing is downloaded; what is damaged is refused by name."""

import base64
import io
import tempfile

import numpy as np
import pytest
from PIL import Image
from transformers.image_utils import load_image

from lmm_lens.prompts import media
from lmm_lens.prompts.sources import open_image, size_as_seen
from tests.support.picture_files import COLOURS, PICTURE, refused, saved

DATA = saved()
TEXT = base64.b64encode(DATA).decode()


WAYS = {
    "PIL": lambda _: PICTURE,
    "path": lambda file: file,
    "text of a path": str,
    "file URL": lambda file: file.as_uri(),
    "bytes": lambda _: DATA,
    "bytearray": lambda _: bytearray(DATA),
    "memoryview": lambda _: memoryview(DATA),
    "BytesIO": lambda _: io.BytesIO(DATA),
    "table of Hugging Face": lambda _: {"bytes": DATA, "path": "elsewhere.png"},
    "path in a table": lambda file: {"bytes": None, "path": str(file)},
    "base64": lambda _: TEXT,
    "base64 in lines": lambda _: base64.encodebytes(DATA).decode(),
    "base64 without its end signs": lambda _: TEXT.rstrip("="),
    "base64 for URLs": lambda _: base64.urlsafe_b64encode(DATA).decode(),
    "data URL": lambda _: f"data:image/png;base64,{TEXT}",
    "data URL that says little": lambda _: f"data:;base64,{TEXT}",
    "data URL with escapes": lambda _: f"data:image/png;base64,{TEXT.replace('+', '%2B').replace('/', '%2F')}",
    "data URL without base64": lambda _: "data:image/png," + "".join(f"%{byte:02x}" for byte in DATA),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_giving_a_picture_gives_the_same(way, tmp_path):
    file = tmp_path / "a picture of %41 \u00fc.png"
    file.write_bytes(DATA)
    np.testing.assert_array_equal(np.asarray(open_image(WAYS[way](file))), COLOURS)


@pytest.mark.parametrize("way", ["text of a path", "base64", "data URL"])
def test_transformers_opens_the_same(way, tmp_path):
    file = tmp_path / "x.png"
    file.write_bytes(DATA)
    np.testing.assert_array_equal(np.asarray(load_image(WAYS[way](file))), COLOURS)


def test_an_open_file_may_be_used_twice_and_stays_open(tmp_path):
    file = tmp_path / "x.png"
    file.write_bytes(DATA)
    with file.open("rb") as opened:
        for _ in range(2):
            np.testing.assert_array_equal(np.asarray(open_image(opened)), COLOURS)
        assert not opened.closed
    refused("the file '.*x.png' cannot be opened as an image: .*closed", lambda: open_image(opened))
    with file.open(encoding="latin-1") as opened:
        refused(
            "the file '.*x.png' is open as text, and so can be no image\n  open it with mode 'rb'",
            lambda: open_image(opened),
        )
    with tempfile.SpooledTemporaryFile() as spooled:
        spooled.write(DATA)
        np.testing.assert_array_equal(np.asarray(open_image(spooled)), COLOURS)


@pytest.mark.parametrize(
    "address", ["http://x.org/a.png", "HTTPS://x.org/a.png", "s3://bucket/a.png", "gs://b/a", "hf://d/a"]
)
def test_nothing_is_downloaded(address):
    text = refused("is an address, and nothing is downloaded: .*\n  fetch it yourself", lambda: open_image(address))
    assert address in text


def test_a_path_made_of_an_address_is_an_address_too(tmp_path):
    refused("'https:/x.org/a.png' is an address", lambda: open_image(type(tmp_path)("https://x.org/a.png")))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("/no/such/picture", "^'/no/such/picture' cannot be opened as an image: No such file or directory$"),
        ("abcd" * 20, "'(abcd){20}' cannot be opened as an image: No such file"),
        ("A" * 9000, r"the text 'AAAA.*\.\.\.' cannot be opened as an image: cannot identify its format"),
        (b"", "image of 0 bytes cannot be opened as an image: cannot identify"),
        (DATA[:-30], r"image of \d+ bytes cannot be opened as an image: .*truncated"),
        (saved(kind="JPEG")[:-300], r"image of \d+ bytes cannot be opened as an image: .*truncated"),
        (saved(kind="GIF")[:-300], r"image of \d+ bytes cannot be opened as an image: .*truncated"),
        (saved(kind="WEBP")[:-300], r"image of \d+ bytes cannot be opened as an image: "),
        (saved(kind="TIFF")[:300], r"image of \d+ bytes cannot be opened as an image: "),
        (DATA[:40] + b"\xff" * 60 + DATA[100:], "image of .* bytes cannot be opened as an image: "),
        (base64.b64encode(DATA[:-30]).decode(), "the base64 text 'iVBOR.*' cannot be opened as an image: .*truncated"),
        (
            f"data:image/png;base64,{TEXT[:-41]}",
            "'data:image/png;base64,iVBO.* cannot be opened as an image: .*truncated",
        ),
        ("data:image/png;base64,", r"holds nothing that can be decoded\n  expected data:image/png;base64,\.\.\."),
        ("data:image/png;base64,\u00e4\u00f6", "holds nothing that can be decoded"),
        ("data:image/png", "holds nothing that can be decoded"),
        (f"data:text/html;base64,{base64.b64encode(b'<html></html>').decode()}", "cannot identify its format"),
        ({"image": 1}, "expected an image, given dict\n  an image is a PIL image, a path, bytes, base64, an open file"),
        ({"bytes": None, "path": None}, "expected an image, given NoneType"),
        (object(), "expected an image, given object"),
    ],
)
def test_what_is_no_whole_picture_is_refused_by_name(given, message):
    refused(message, lambda: open_image(given))


def test_a_folder_is_no_picture(tmp_path):
    refused("cannot be opened as an image: Is a directory", lambda: open_image(tmp_path))


def test_a_bomb_is_refused_with_what_to_do(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    refused(
        "could be decompression bomb.*\n  if you trust it, set PIL.Image.MAX_IMAGE_PIXELS", lambda: open_image(DATA)
    )


# ---------------------------------------------------------------------- several frames

FRAMES = [Image.new("RGB", (30, 20), colour) for colour in ("red", "lime", "blue")]
SEVERAL = {
    "GIF": saved(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]),
    "WEBP": saved(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:], lossless=True),
    "PNG": saved(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]),
    "TIFF": saved(FRAMES[0], "TIFF", save_all=True, append_images=FRAMES[1:]),
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_no_frame_and_no_page_is_dropped_without_a_word(kind):
    advice = (
        r"has 3 frames or pages, but an image is one\n  give it with videos=..., or give one of its frames: image.seek"
    )
    refused(advice, lambda: open_image(SEVERAL[kind]))
    opened = Image.open(io.BytesIO(SEVERAL[kind]))
    refused("a PIL image of mode .* has 3 frames", lambda: open_image(opened))
    opened.seek(2)
    assert open_image(opened.convert("RGBA")).getpixel((5, 5)) == (0, 0, 255)  # the advice works


def test_a_gif_of_one_frame_is_a_picture():
    assert open_image(saved(FRAMES[1], "GIF")).getpixel((5, 5)) == (0, 255, 0)


def test_of_a_photo_with_a_preview_the_photo_is_seen():
    data = saved(PICTURE, "MPO", save_all=True, append_images=[PICTURE.resize((15, 10))], quality=100)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    np.testing.assert_array_equal(np.asarray(open_image(data)), np.asarray(load_image(Image.open(io.BytesIO(data)))))


def test_an_array_of_pictures_is_several_pictures():
    stack = np.stack([COLOURS, COLOURS[::-1]])
    (row,) = media.rows_of_images(stack, 1, batched=False)
    for image, expected in zip(row, stack, strict=True):
        np.testing.assert_array_equal(np.asarray(image), expected)
    rows = media.rows_of_images(stack, 2, batched=True)
    assert [len(row) for row in rows] == [1, 1]
    refused("3 texts need a list of 3 entries as images, given 2 entries", lambda: media.rows_of_images(stack, 3, True))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_the_size_of_a_photo_is_known_before_it_is_decoded(kind):
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = saved(PICTURE, kind, exif=exif)
        with Image.open(io.BytesIO(data)) as opened:
            assert size_as_seen(opened) == open_image(data).size
