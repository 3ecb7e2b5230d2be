"""Gemma 3: a square between begin and end, and pan and scan, against the real processor."""

import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st

from lmm_lens import LensError
from lmm_lens.adapters.gemma3 import crops
from lmm_lens.prompts.build import from_tensors
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
from tests.support.families.gemma3 import PAN


def features(lens, inputs, pixels=None):
    model = lens.adapter.model.model
    with identity(model.vision_tower.encoder.layers):
        out = model.get_image_features(inputs["pixel_values"] if pixels is None else pixels).pooler_output
    return torch.cat(list(out))


def test_every_picture_is_one_square_between_markers():
    lens = lens_of("gemma3")
    prompt = lens.prompt("a <begin> b <begin>", images=[picture(56, 84), picture(300, 20)])
    check_bookkeeping(lens, prompt, lens.adapter.image_token_id)
    check_it_runs(lens, prompt)
    assert torch.equal(prompt.mask("visual"), prompt.inputs["token_type_ids"] == 1)
    images = [s for s in prompt.spans[0] if s.kind == "image"]
    assert [(s.image, s.tile, s.grid) for s in images] == [(0, 0, (2, 2)), (1, 0, (2, 2))]
    assert [s.region for s in images] == [(0, 0, 56, 84), (0, 0, 300, 20)]
    assert [prompt.tokens[0][p] for p in prompt.mask("marker")[0].nonzero().flatten()] == ["<begin>", "<end>"] * 2


def test_the_box_of_every_token_is_where_its_gradient_lies():
    lens = lens_of("gemma3")
    prompt = lens.prompt(inputs=dict(lens.prompt("<begin><begin>", images=[picture(90, 90)] * 2).inputs))
    found = supports(lambda pixels: features(lens, prompt.inputs, pixels), prompt.inputs["pixel_values"])
    check_boxes(prompt, found)


@pytest.mark.parametrize("size", [(300, 100), (101, 307), (80, 80), (203, 61), (500, 60)])
def test_pan_and_scan_adds_a_tile_for_each_crop_with_its_region(size):
    """A mark moves the tokens that the boxes name, in the picture and in its crops."""
    lens = lens_of("gemma3 pan")
    width, height = size
    mark = (width // 2, height // 3, width // 2 + width // 4, height // 3 + height // 4)
    before, after = (lens.prompt("<begin>?", images=picture(*size, m)) for m in (None, mark))
    check_bookkeeping(lens, before, lens.adapter.image_token_id)
    check_it_runs(lens, before)
    images = [s for s in before.spans[0] if s.kind == "image"]
    assert len(images) == len(before.inputs["pixel_values"])
    assert [(s.image, s.tile) for s in images] == [(0, tile) for tile in range(len(images))]
    assert (len(images) > 1) == (size != (80, 80))
    moved = changed(features(lens, before.inputs), features(lens, after.inputs), before)
    check_mark(before, moved, mark, halo=(2 * width / 56, 2 * height / 56))
    if len(images) > 1:  # patch_at gives the finest: a token of a crop
        assert before.patch_at(width - 1, height - 1) in images[-1].positions


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.integers(1, 300), st.integers(1, 6), st.floats(1, 3))
def test_crops_are_those_of_the_processor_and_tile_the_picture(width, height, smallest, most, ratio):
    x, y = torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")
    cut = hf.Gemma3ImageProcessorPil().pan_and_scan(torch.stack([x, y]).numpy(), smallest, most, ratio)
    own = crops((width, height), smallest, most, ratio)
    kept = [c for c in cut if c.size]  # rounding up may leave nothing for the last
    assert own[: len(kept)] == [(c[0].min(), c[1].min(), c[0].max() + 1, c[1].max() + 1) for c in kept]
    assert len(own) == len(cut)
    if own:
        assert sum((b.x1 - b.x0) * (b.y1 - b.y0) for b in own[: len(kept)]) == width * height


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pan", [False, True])
def test_rows_of_a_batch_have_their_own_pictures_and_padding(pan, side):
    lens = lens_of("gemma3 pan" if pan else "gemma3")
    lens.processor.tokenizer.padding_side = side
    texts = ["no picture at all", "<begin> two <begin>", "x <begin>"]
    pictures = [None, [picture(200, 60), picture(60, 60)], [picture(90, 300)]]
    prompt = lens.prompt(texts, images=pictures)
    check_bookkeeping(lens, prompt, lens.adapter.image_token_id)
    check_it_runs(lens, prompt)
    alone = [lens.prompt(t, images=p) for t, p in zip(texts, pictures, strict=True)]
    for row, single in enumerate(alone):
        shift = int(prompt.mask("all")[row].int().argmax())
        assert [list(s.positions) for s in prompt.spans[row]] == [
            [p + shift for p in span.positions] for span in single.spans[0]
        ]
        assert [(s.kind, s.image, s.tile, s.region) for s in prompt.spans[row]] == [
            (s.kind, s.image, s.tile, s.region) for s in single.spans[0]
        ]
    images = [s for row in prompt.spans for s in row if s.kind == "image"]
    assert len(images) == (3 if not pan else len(prompt.inputs["pixel_values"]))


def test_tensors_alone_do_not_tell_crops_from_pictures():
    """Every square then counts as a picture, in pixels of the processed square."""
    lens = lens_of("gemma3 pan")
    prompt = lens.prompt(inputs=dict(lens.prompt("<begin>", images=picture(300, 100)).inputs))
    images = [s for s in prompt.spans[0] if s.kind == "image"]
    assert [(s.image, s.tile, s.region) for s in images] == [(i, 0, (0, 0, 56, 56)) for i in range(len(images))]


def test_a_number_of_squares_that_fits_no_picture_is_refused(monkeypatch):
    """As when the processor's settings were changed between processing and here."""
    lens = lens_of("gemma3 pan")
    monkeypatch.setattr(lens.processor, "images_kwargs", {**PAN, "pan_and_scan_max_num_crops": 2})
    inputs = lens.prompt("<begin>", images=picture(300, 100)).inputs
    monkeypatch.undo()
    with pytest.raises(LensError, match=r"3 squares of image tokens were found for 1 pictures\n.*or 4 with"):
        from_tensors(lens.adapter, inputs, lens.device, [[picture(300, 100)]])
