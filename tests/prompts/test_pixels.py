"""Every kind of pixel against the same picture made of bytes, or against transformers' own `load_image`."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.image_utils import load_image

from lmm_lens.errors import PromptError
from lmm_lens.prompts.sources import open_image

V = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)
V[0, :2] = 0, 255  # all of the range is there
COLOURS = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
GREY = np.stack([V] * 3, -1)
WIDE = V.astype(np.uint16) * 257  # the same grey, of 65535
UNIT = (V / 255).astype(np.float32)


def seen(image) -> np.ndarray:
    opened = open_image(image)
    assert opened.mode == "RGB"
    return np.asarray(opened)


def saved(image, kind="PNG", **options) -> bytes:
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, kind, **options)
    return file.getvalue()


def same(given, expected) -> None:
    np.testing.assert_array_equal(seen(given), expected)


GREYS = {
    "L": lambda: Image.fromarray(V),
    "LA": lambda: Image.fromarray(V).convert("LA"),
    "La": lambda: Image.fromarray(V).convert("LA").convert("La"),
    "P": lambda: Image.fromarray(V).convert("P"),
    "PA": lambda: Image.fromarray(V).convert("PA"),
    "RGBA": lambda: Image.fromarray(V).convert("RGBA"),
    "RGBa": lambda: Image.fromarray(V).convert("RGBA").convert("RGBa"),
    "RGBX": lambda: Image.fromarray(V).convert("RGBX"),
    "CMYK": lambda: Image.fromarray(V).convert("CMYK"),
    "I": lambda: Image.fromarray(V).convert("I"),
    "F": lambda: Image.fromarray(V).convert("F"),
    "I;16": lambda: Image.fromarray(WIDE),
    "I;16B": lambda: Image.fromarray(WIDE.astype(">u2")),
    "I of 16 bits": lambda: Image.fromarray(WIDE.astype(np.int32)),
    "F of 0 to 1": lambda: Image.fromarray(UNIT),
}


@pytest.mark.parametrize("mode", GREYS)
def test_a_grey_picture_is_the_same_in_every_mode(mode):
    image = GREYS[mode]()
    assert image.mode == mode.split()[0]
    same(image, GREY)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(GREYS[mode]()))  # the user's own is as it was


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_file_of_16_bits_is_no_white_picture(kind):
    same(saved(WIDE, kind), GREY)
    assert load_image(Image.open(io.BytesIO(saved(WIDE, kind)))).getextrema()[0] == (0, 255)
    assert (np.asarray(load_image(Image.open(io.BytesIO(saved(WIDE, kind))))) == 255).mean() > 0.9  # what PIL makes


def test_a_tiff_of_32_bits_or_of_floats_is_no_black_picture():
    same(saved(WIDE.astype(np.int32), "TIFF"), GREY)
    same(saved(UNIT, "TIFF"), GREY)
    same(saved(V.astype(np.float32), "TIFF"), GREY)


def test_of_16_bits_the_high_byte_is_seen_as_pil_does_for_colours():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    same(values, np.stack([values // 256] * 3, -1))


@pytest.mark.parametrize("values", [65535 - WIDE, 1 - UNIT, V], ids=["16 bits", "floats", "bytes"])
def test_a_tiff_in_which_white_is_zero_is_not_a_negative(values):  # PIL turns bytes round when it saves them
    same(saved(values, "TIFF", tiffinfo={262: 0}), GREY)


def test_a_picture_of_one_bit_is_black_and_white():
    bits = V > 127
    expected = np.where(bits, 255, 0).astype(np.uint8)[..., None].repeat(3, -1)
    same(Image.fromarray(bits), expected)
    same(saved(Image.fromarray(bits)), expected)
    same(bits, expected)


def on_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return colours * share + 255 * (1 - share)


def test_what_is_transparent_is_white_and_what_is_half_so_is_pale():
    rgba = np.dstack([COLOURS, V])
    for given in (Image.fromarray(rgba), saved(rgba), rgba, saved(rgba, "WEBP", lossless=True, exact=True)):
        np.testing.assert_allclose(seen(given), on_white(COLOURS, V), atol=1)
    assert (seen(rgba)[V == 0] == 255).all()
    assert (seen(rgba)[V == 255] == COLOURS[V == 255]).all()
    grey = np.dstack([V, V.T.reshape(V.shape)])
    for given in (Image.fromarray(grey), saved(grey), grey):
        np.testing.assert_allclose(seen(given), on_white(GREY, grey[..., 1]), atol=1)


@pytest.mark.parametrize(
    ("image", "clear"),
    [
        (Image.fromarray(COLOURS).quantize(8), 3),
        (Image.fromarray(V), 7),
        (Image.fromarray(WIDE), 7 * 257),
        (Image.fromarray(V > 100), 0),
        (Image.fromarray(np.where(V[..., None] > 99, COLOURS, 40)), (40, 40, 40)),
    ],
    ids=["palette", "grey", "16 bits", "1 bit", "colours"],
)
def test_a_colour_that_a_file_calls_transparent_is_white(image, clear):
    given = saved(image, transparency=clear)
    opened = Image.open(io.BytesIO(given))
    assert "transparency" in opened.info
    values = np.asarray(opened)
    hidden = (values == clear).all(-1) if values.ndim == 3 else values == clear
    assert hidden.any()
    assert (seen(given)[hidden] == 255).all()
    np.testing.assert_array_equal(seen(given)[~hidden], seen(saved(image))[~hidden])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_as_the_camera_was_held(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(COLOURS, kind, exif=exif)
    expected = np.asarray(load_image(Image.open(io.BytesIO(data))))
    assert (expected.shape[0] > expected.shape[1]) == (orientation > 4)
    same(data, expected)
    same(Image.open(io.BytesIO(data)), expected)
    if kind in ("PNG", "TIFF"):  # which hold 16 bits
        upright = np.asarray(load_image(Image.open(io.BytesIO(saved(V, kind, exif=exif)))))
        same(saved(WIDE, kind, exif=exif), upright)


def test_a_photo_that_is_upright_already_is_not_turned_again():
    exif = Image.Exif()
    exif[0x0112] = 6
    once = open_image(saved(COLOURS, exif=exif))
    same(once, np.asarray(once))


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_a_picture_for_the_press_is_as_transformers_opens_it(kind):
    data = saved(Image.fromarray(COLOURS).convert("CMYK"), kind)
    same(data, np.asarray(load_image(Image.open(io.BytesIO(data)))))


# ---------------------------------------------------------------------- arrays and tensors

FIRST = torch.from_numpy(COLOURS).permute(2, 0, 1)
ARRAYS = {
    "bytes": COLOURS,
    "colours first": COLOURS.transpose(2, 0, 1),
    "tensor": FIRST,
    "tensor, colours last": torch.from_numpy(COLOURS),
    "integers": COLOURS.astype(np.int64),
    "tensor of integers": FIRST.int(),
    "16 bits": COLOURS.astype(np.uint16) * 257,
    "16 bits in 32": COLOURS.astype(np.int32) * 257,
    "floats of 0 to 255": COLOURS.astype(np.float32),
    "floats of 0 to 1": COLOURS / 255,
    "halves of 0 to 1": (COLOURS / 255).astype(np.float16),
    "tensor of 0 to 1": FIRST / 255,
    "tensor that learns": (FIRST / 255).requires_grad_(),
    "bfloat16 of 0 to 255": FIRST.bfloat16(),
    "backwards in memory": COLOURS[::-1].copy()[::-1],
    "not in order": np.asfortranarray(COLOURS),
    "opaque": np.dstack([COLOURS, np.full_like(V, 255)]),
    "opaque tensor": torch.from_numpy(np.dstack([COLOURS, np.full_like(V, 255)])).permute(2, 0, 1) / 255,
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_an_array_or_a_tensor_is_the_picture_of_its_range(kind):
    tolerance = {"bfloat16 of 0 to 255": 1}.get(kind, 0)
    np.testing.assert_allclose(seen(ARRAYS[kind]).astype(int), COLOURS, atol=tolerance)


@pytest.mark.parametrize(
    "grey", [V, V[..., None], V[None], torch.from_numpy(V), torch.from_numpy(V)[None] / 255, WIDE, UNIT, V == V]
)
def test_a_grey_array_is_grey(grey):
    same(grey, GREY if grey.dtype != bool else np.full_like(GREY, 255))


def test_resized_floats_may_leave_their_range_by_a_hair():
    same(np.where(UNIT == 1, 1.0005, np.where(UNIT == 0, -0.0005, UNIT)), GREY)


def test_black_is_black_in_every_number():
    for kind in (np.uint8, np.uint16, np.int32, np.float32, bool):
        same(np.zeros((5, 6, 3), kind), np.zeros((5, 6, 3)))


def test_the_usual_order_of_colours_decides_where_both_could_be():
    odd = COLOURS[:3]  # 3 x 30 x 3
    same(odd, odd)
    same(torch.from_numpy(odd), torch.from_numpy(odd).permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((3, 4, 4), np.uint8), r"ndarray \(3, 4, 4\) of uint8: which dimension holds the colours"),
        (np.zeros((7, 8, 9), np.uint8), r"expected an image, given ndarray \(7, 8, 9\) of uint8\n  an array of an"),
        (np.zeros((1, 2, 4, 4, 3), np.uint8), "expected an image, given ndarray"),
        (np.zeros(5, np.uint8), r"expected an image, given ndarray \(5,\)"),
        (np.zeros((0, 5, 3), np.uint8), r"ndarray \(0, 5, 3\) of uint8 has no pixel"),
        (Image.new("RGB", (0, 4)), "a PIL image of mode RGB has no pixel: it is 0 x 4"),
        (UNIT * np.nan, r"ndarray \(20, 30\) of float32 holds pixels that are NaN or infinite\n  expected 0 to 1"),
        (np.where(UNIT == 1, np.inf, UNIT), "NaN or infinite"),
        (Image.fromarray(UNIT * np.float32("nan")), "a PIL image of mode F holds pixels that are NaN"),
        (UNIT * 2 - 1, r"go from -1 to 1; expected 0 to 255, floats of 0 to 1, or 16 bits\n  .*before it was normal"),
        ((torch.from_numpy(GREY).permute(2, 0, 1) / 255 - 0.5) / 0.25, r"Tensor \(3, 20, 30\) .* go from -2 to 2;"),
        (UNIT * 3, "go from 0 to 3;"),
        (UNIT * 1000, "go from 0 to 1000;"),
        (V.astype(np.int16) - 20, "go from -20 to 235;"),
        (WIDE.astype(np.int64) * 16, "go from 0 to 1.04856e[+]06;"),
        (
            V.astype(np.uint16) * 16,
            r"has pixels of 16 bits, but none is above 4080 of 65535: the model would see black",
        ),
        (saved(V.astype(np.uint16)), r"image of \d+ bytes has pixels of 16 bits, but none is above 255 of 65535"),
        (Image.fromarray(V.astype(np.int32) * 4), "mode I has pixels of 16 bits, but none is above 1020"),
        (V.astype(np.complex64), "expected numbers as pixels, .* has complex64"),
        (V.astype(str), "expected numbers as pixels"),
        (FIRST.to("meta"), "is on the meta device, where it has no values"),
    ],
)
def test_what_could_be_meant_in_two_ways_is_refused(given, message):
    with pytest.raises(PromptError, match=message) as caught:
        open_image(given)
    assert len(str(caught.value).splitlines()) <= 3
