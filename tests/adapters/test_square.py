"""Square pictures: LLaVA, PaliGemma, DeepSeek-VL (one tower and two), Janus, FastVLM, with their real processors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmm_lens import Lens, LensError
from tests.support.evidence import (
    changed,
    check_bookkeeping,
    check_boxes,
    check_it_runs,
    check_mark,
    identity,
    picture,
    supports,
)
from tests.support.families import lens_of
from tests.support.families.square import NAMES

BEGIN_END = {"janus"}
BATCHES = [name for name in NAMES if name != "paligemma"]  # which takes no row without a picture


def image_id(lens: Lens) -> int:
    return lens.processor.tokenizer.convert_tokens_to_ids("<image>")


def features(lens: Lens, inputs, pixels=None):
    """The feature of every image token, in order, each from its own pixels alone."""
    model = lens.adapter.model.model
    pixels = inputs["pixel_values"] if pixels is None else pixels
    tower = model.vision_model if hasattr(model, "vision_model") else model.vision_tower
    blocks = [m for m in tower.modules() if type(m).__name__.endswith(("EncoderLayer", "ConvNextLayer"))]
    assert blocks
    with identity(blocks):
        if hasattr(model, "get_low_res_image_features"):  # the other tower looks beyond the box
            return model.get_low_res_image_features(pixels).last_hidden_state.flatten(0, 1)
        out = model.get_image_features(pixel_values=pixels).pooler_output
        return torch.cat(list(out))


@pytest.mark.parametrize("name", NAMES)
def test_every_picture_is_one_square(name):
    lens = lens_of(name)
    assert lens.adapter.family == name.split()[0]
    prompt = lens.prompt("<image> a <image><image> b", images=[picture(56, 84), picture(100, 28), picture(60, 60)])
    check_bookkeeping(lens, prompt, image_id(lens))
    check_it_runs(lens, prompt)
    images = [span for span in prompt.spans[0] if span.kind == "image"]
    side = 3 if name == "fast_vlm" else 4
    assert [(s.image, s.tile, s.grid) for s in images] == [(i, 0, (side, side)) for i in range(3)]
    tokens = lens.processor.tokenizer.convert_ids_to_tokens(prompt.inputs["input_ids"][0].tolist())
    around = ("<begin>", "<end>") if name in BEGIN_END else ()
    assert prompt.mask("marker")[0].tolist() == [token in around for token in tokens]


@pytest.mark.parametrize("name", NAMES)
def test_the_box_of_every_token_is_where_its_gradient_lies(name):
    lens = lens_of(name)
    prompt = lens.prompt(inputs=dict(lens.prompt("<image> and <image>", images=[picture(90, 90)] * 2).inputs))
    found = supports(lambda pixels: features(lens, prompt.inputs, pixels), prompt.inputs["pixel_values"])
    check_boxes(prompt, found)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(112, 112), (300, 170), (90, 231)])
def test_a_mark_in_the_picture_as_given_moves_the_tokens_that_its_box_names(name, size):
    lens = lens_of(name)
    width, height = size
    mark = (width // 2, height // 3, width // 2 + width // 4, height // 3 + height // 4)
    before, after = (lens.prompt("<image>?", images=picture(*size, m)) for m in (None, mark))
    moved = changed(features(lens, before.inputs), features(lens, after.inputs), before)
    check_mark(before, moved, mark, halo=(2.5 * max(size) / 56,) * 2)


@settings(max_examples=20, deadline=None)
@given(st.integers(20, 300), st.integers(20, 300), st.sampled_from(sorted(NAMES)))
def test_the_square_covers_the_whole_picture_whatever_its_shape(width, height, name):
    lens = lens_of(name)
    prompt = lens.prompt("<image>?", images=picture(width, height))
    check_bookkeeping(lens, prompt, image_id(lens))
    seen = 56 / 60 if name == "llava siglip 60" else 1
    corners = [(x, y) for x in (0, width * seen - 1) for y in (0, height * seen - 1)]
    assert all(prompt.patch_at(*corner) in prompt.spans[0][name in BEGIN_END].positions for corner in corners)
    boxes = [prompt.box(p) for p in prompt.mask("image")[0].nonzero().flatten().tolist()]
    region = next(span.region for span in prompt.spans[0] if span.kind == "image")
    area = (region.x1 - region.x0) * (region.y1 - region.y0)
    assert sum((b.x1 - b.x0) * (b.y1 - b.y0) for b in boxes) == pytest.approx(area)


@pytest.mark.parametrize("name", ["deepseek_vl", "deepseek_vl_hybrid", "janus"])
@pytest.mark.parametrize("size", [(133, 77), (77, 133), (200, 5), (5, 200), (61, 60), (60, 60)])
def test_padding_is_where_the_processor_put_it_to_the_pixel(name, size):
    """Thin pictures are stretched to the smallest side that the processor allows."""
    prompt = lens_of(name).prompt("<image>", images=picture(*size, (0, 0, *size)))  # white, on a grey ground
    pixels = prompt.inputs.get("high_res_pixel_values", prompt.inputs["pixel_values"])[0, 0]
    ground = pixels < pixels.max() - 0.01
    square, (x0, y0, x1, y1) = len(pixels), next(s.region for s in prompt.spans[0] if s.kind == "image")
    for whole, start, end, padded in ((size[0], x0, x1, ground.all(0)), (size[1], y0, y1, ground.all(1))):
        shown = (~padded).nonzero().flatten()
        if ground.any():
            assert (0 - start) / (end - start) * square == pytest.approx(int(shown[0]))
            assert (whole - start) / (end - start) * square == pytest.approx(int(shown[-1]) + 1)
        else:
            assert (start, end) == (0, whole)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", BATCHES)
def test_rows_of_a_batch_have_their_own_pictures_and_padding(name, side):
    lens = lens_of(name)
    lens.processor.tokenizer.padding_side = side
    texts = ["no picture at all", "<image> two <image>", "x <image>"]
    pictures = [None, [picture(56, 84), picture(112, 28)], [picture(84, 84)]]
    prompt = lens.prompt(texts, images=pictures)
    check_bookkeeping(lens, prompt, image_id(lens))
    check_it_runs(lens, prompt)
    alone = [lens.prompt(t, images=p) for t, p in zip(texts, pictures, strict=True)]
    for row, single in enumerate(alone):
        shift = int(prompt.mask("all")[row].int().argmax())
        moved = [[p + shift for p in span.positions] for span in single.spans[0]]
        assert [list(span.positions) for span in prompt.spans[row]] == moved
        assert [(s.kind, s.image, s.grid, s.region) for s in prompt.spans[row]] == [
            (s.kind, s.image, s.grid, s.region) for s in single.spans[0]
        ]


def test_paligemma_batches_rows_with_pictures():
    lens = lens_of("paligemma")
    prompt = lens.prompt(["<image> a", "longer text"], images=[picture(90, 40), picture(40, 90)])
    check_bookkeeping(lens, prompt, image_id(lens))
    check_it_runs(lens, prompt)
    assert [len(row) for row in prompt.spans] == [1, 1]
    bos = prompt.mask("bos").int().argmax(1).tolist()
    assert bos == [row[-1].positions[-1] + 1 for row in prompt.spans]  # right after the picture


def test_paligemma_refuses_a_row_without_a_picture():
    with pytest.raises(LensError, match=r"rows \[1\] have none\n.*a prompt of their own"):
        lens_of("paligemma").prompt(["<image> a", "text"], images=[picture(56, 56), None])


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_is_no_whole_number_of_pictures_is_refused(name):
    inputs = dict(lens_of(name).prompt("<image>", images=picture(56, 56)).inputs)
    ids = inputs["input_ids"][0]
    first = int((ids == image_id(lens_of(name))).int().argmax())
    shorter = {"input_ids": torch.cat([ids[:first], ids[first + 1 :]])[None], "pixel_values": inputs["pixel_values"]}
    with pytest.raises(LensError, match="is no whole number of pictures"):
        lens_of(name).prompt(inputs=shorter)
