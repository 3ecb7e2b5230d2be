"""All frames of a video, whatever it comes in, and none left out without a word."""

import base64
import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from lmm_lens.errors import PromptError
from lmm_lens.prompts import media, videos
from lmm_lens.prompts.videos import open_video
from tests.support.picture_files import refused, saved

COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (90, 90, 90)]
FRAMES = [Image.new("RGB", (64, 48), colour) for colour in COLOURS]
STACK = np.stack([np.asarray(frame) for frame in FRAMES])


def animated(kind, frames=FRAMES, **options) -> bytes:
    return saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)


def colours(frames, at=(40, 30)):
    assert all(frame.mode == "RGB" for frame in frames)
    return [frame.getpixel(at) for frame in frames]


ANIMATIONS = {
    "GIF": animated("GIF"),
    "WEBP": animated("WEBP", lossless=True),
    "PNG": animated("PNG"),
    "TIFF": animated("TIFF"),
}


@pytest.mark.parametrize("kind", ANIMATIONS)
def test_an_animated_picture_is_the_video_of_all_its_frames(kind, tmp_path):
    data = ANIMATIONS[kind]
    file = tmp_path / f"film.{kind.lower()}"
    file.write_bytes(data)
    opened = Image.open(io.BytesIO(data))
    opened.seek(2)
    ways = [file, str(file), data, io.BytesIO(data), opened, base64.b64encode(data).decode()]
    for way in [*ways, f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode()}"]:
        assert colours(open_video(way)) == COLOURS
    assert opened.tell() == 2  # the user's own stays where it was


def test_what_stands_in_for_an_animation_is_no_frame_of_it():
    stand_in = Image.new("RGB", (64, 48), "white")
    data = saved(stand_in, "PNG", save_all=True, append_images=FRAMES, default_image=True)
    assert Image.open(io.BytesIO(data)).n_frames == 5
    assert colours(open_video(data)) == COLOURS


def test_frames_that_only_change_a_part_are_whole():
    moving = [Image.new("RGBA", (64, 48), (0, 0, 0, 0)) for _ in range(3)]
    for i, frame in enumerate(moving):
        frame.paste((255, 0, 0, 255), (20 * i, 0, 20 * i + 10, 10))
    film = open_video(animated("GIF", moving, disposal=2))
    for i, frame in enumerate(film):
        seen = np.asarray(frame)
        expected = np.full_like(seen, 255)  # transparent is white
        expected[:10, 20 * i : 20 * i + 10] = 255, 0, 0
        np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize(
    "given",
    [
        FRAMES,
        STACK,
        STACK / 255,
        torch.from_numpy(STACK),
        torch.from_numpy(STACK).permute(0, 3, 1, 2),
        list(STACK),
        [saved(frame) for frame in FRAMES],
    ],
    ids=["images", "array", "floats", "tensor", "tensor, colours first", "arrays", "files"],
)
def test_a_list_or_an_array_is_a_video(given):
    for videos_of_row in (given, [given]):
        ((film,),) = media.rows_of_videos(videos_of_row, 1, batched=False)
        assert colours(film) == COLOURS
    rows = media.rows_of_videos([given, None, [given, given]], 3, batched=True)
    assert [len(row) for row in rows] == [1, 0, 2]


def test_a_list_of_files_is_videos_or_frames_by_what_they_hold():
    gif, still = ANIMATIONS["GIF"], saved(FRAMES[0])
    assert [len(film) for (film,) in media.rows_of_videos([gif, still], 2, batched=True)] == [4, 1]
    (row,) = media.rows_of_videos([gif, gif], 1, batched=False)
    assert [len(film) for film in row] == [4, 4]
    ((film,),) = media.rows_of_videos([still, still], 1, batched=False)
    assert len(film) == 2
    assert [len(film) for film in media.rows_of_videos(np.stack([STACK, STACK]), 1, batched=False)[0]] == [4, 4]
    assert media.rows_of_videos(None, 2, batched=True) == [[], []]
    assert media.rows_of_videos([], 1, batched=False) == [[]]
    refused(
        "2 texts need a list of 2 entries as videos, given one ndarray", lambda: media.rows_of_videos(STACK, 2, True)
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a", FRAMES[0]], "'a' cannot be opened as an image: No such file"),
        ([FRAMES[0], FRAMES[1].resize((9, 9))], r"all of one size, given 2 frames of sizes \[\(9, 9\), \(64, 48\)\]"),
        (STACK[:0], "given 0 frames"),
        ([ANIMATIONS["GIF"], FRAMES[0]], "has 4 frames or pages, but an image is one"),
        ("/no/film.mp4", "'/no/film.mp4' cannot be opened as a video: No such file or directory"),
        ("https://x.org/film.mp4", r"is an address, and nothing is downloaded"),
        (ANIMATIONS["GIF"][:-40], "video of .* bytes cannot be opened as a video: .*truncated|frame"),
        (
            7,
            r"expected a video, given int\n  a video is a list of images, an array \[frame, height, width, 3\], a path",
        ),
        (STACK - 300.0, "ndarray .* go from "),
    ],
)
def test_what_is_no_whole_video_is_refused(given, message):
    refused(message, lambda: open_video(given))


# ---------------------------------------------------------------------- films, which need a decoder


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """A film of noise, whose frames differ, without loss in its brightness: MP4 with its index in front."""
    import av

    path = tmp_path_factory.mktemp("films") / "film.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as out:
        stream = out.add_stream("libx264", rate=10, options={"crf": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv444p"
        for frame in noise():
            out.mux(stream.encode(av.VideoFrame.from_image(frame)))
        out.mux(stream.encode())
    return path


def noise(n=12):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (48, 64, 1), dtype=np.uint8).repeat(3, -1)) for _ in range(n)]


@pytest.mark.parametrize(
    "way", [str, lambda path: path, lambda path: path.read_bytes(), lambda path: io.BytesIO(path.read_bytes())]
)
def test_every_frame_of_a_film_is_read(film, way):
    for found, expected in zip(open_video(way(film)), noise(), strict=True):
        np.testing.assert_allclose(np.asarray(found).astype(int), np.asarray(expected), atol=3)


def test_a_list_of_films_is_several_videos(film):
    (row,) = media.rows_of_videos([film, str(film)], 1, batched=False)
    assert [len(each) for each in row] == [12, 12]
    refused("cannot be opened as an image: cannot identify.*\n.*videos=", lambda: media.rows_of_images(film, 1, False))


def test_a_film_is_turned_as_the_camera_was_held(film, tmp_path):
    data = bytearray(film.read_bytes())
    matrix = data.find(b"tkhd") + 4 + 4 + 20 + 16  # of the track: a quarter turn clockwise
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 48 << 16, 0, 1 << 30)
    turned = open_video(bytes(data))
    for found, expected in zip(turned, noise(), strict=True):
        upright = np.rot90(np.asarray(expected), -1)
        np.testing.assert_allclose(np.asarray(found).astype(int), upright, atol=3)


def test_a_film_that_was_cut_off_is_refused(film, tmp_path):
    import av

    data = film.read_bytes()
    refused("video of .* bytes cannot be opened as a video: ", lambda: open_video(data[: len(data) * 3 // 4]))
    other = tmp_path / "film.mkv"  # a kind that just ends
    with av.open(str(film)) as whole, av.open(str(other), "w") as out:
        stream = out.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    data = other.read_bytes()
    assert len(open_video(data)) == 12
    for _ in range(2):  # what libav says twice it says once
        refused("File ended prematurely", lambda: open_video(data[: len(data) * 3 // 4]))


def test_a_film_too_long_to_hold_is_refused(film, monkeypatch):
    monkeypatch.setattr(videos, "MOST_BYTES", 5 * 3 * 64 * 48)
    refused(
        "film.mp4' has more than 5 frames of 64 x 48.*\n  decode it yourself, and give the frames",
        lambda: open_video(film),
    )


def test_without_a_decoder_the_error_says_what_to_install(film, monkeypatch):
    monkeypatch.setattr(videos, "DECODERS", {"no_such_decoder": None})
    refused(
        "film.mp4' is no picture that PIL knows, and to decode films nothing is installed\n  pip install av",
        lambda: open_video(film),
    )
    assert colours(open_video(ANIMATIONS["GIF"])) == COLOURS  # which need none


def test_a_decoder_that_does_not_load_is_named(film, monkeypatch):
    def broken(file):
        raise ImportError("libavcodec.so is not there")
        yield

    monkeypatch.setattr(videos, "DECODERS", {"sys": broken})
    refused("film.mp4' cannot be opened as a video: libavcodec.so is not there", lambda: open_video(film))


def test_no_text_is_a_film():
    refused(
        "cannot be opened as a video: |nothing is installed",
        lambda: open_video(io.BytesIO(b"this is no film at all, but words")),
    )
    with pytest.raises(PromptError):
        open_video(__file__)
