"""Pixtral and Mistral 3: rows of patches of varying length, each ended by a break, against the real processor."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

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
from tests.support.families.pixtral import MERGE

NAMES = ["pixtral", "mistral3"]


def image_id(lens: Lens) -> int:
    return lens.processor.image_token_id


def features(lens: Lens, inputs, pixels=None):
    """The feature of every image token, in order, each from its own pixels alone."""
    model = lens.adapter.model.model
    tower = model.vision_tower
    with identity(tower.transformer.layers):
        pixels = inputs["pixel_values"] if pixels is None else pixels
        out = model.get_image_features(pixel_values=pixels, image_sizes=inputs["image_sizes"]).pooler_output
    return torch.cat(list(out))


@pytest.mark.parametrize("name", NAMES)
def test_every_picture_keeps_its_shape_and_every_row_ends_in_a_marker(name):
    lens = lens_of(name)
    pictures = [picture(56, 84), picture(100, 28), picture(300, 200)]
    prompt = lens.prompt("a [IMG] b [IMG][IMG] c", images=pictures)
    check_bookkeeping(lens, prompt, image_id(lens))
    check_it_runs(lens, prompt)
    edge = 14 * MERGE[name]
    sizes = prompt.inputs["image_sizes"].tolist()
    images = [span for span in prompt.spans[0] if span.kind == "image"]
    assert [span.grid for span in images] == [(h // edge, w // edge) for h, w in sizes]
    assert [(span.image, span.tile) for span in images] == [(0, 0), (1, 0), (2, 0)]
    ids = prompt.inputs["input_ids"][0]
    breaks = lens.processor.image_break_token_id, lens.processor.image_end_token_id
    assert torch.equal(prompt.mask("marker")[0], torch.isin(ids, torch.tensor(breaks)))
    markers = [span for span in prompt.spans[0] if span.kind == "marker"]
    assert [len(span) for span in markers] == [span.grid[0] for span in images]
    assert [span.image for span in markers] == [0, 1, 2]
    assert all(span.positions[-1] not in prompt.mask("text")[0].nonzero() for span in markers)


@pytest.mark.parametrize("name", NAMES)
def test_the_box_of_every_token_is_where_its_gradient_lies(name):
    lens = lens_of(name)
    given_ = lens.prompt("[IMG] and [IMG]", images=[picture(112, 56), picture(56, 84)]).inputs
    prompt = lens.prompt(inputs=dict(given_))  # processed pixels: sizes of the pictures are not known
    found = supports(lambda pixels: features(lens, prompt.inputs, pixels), prompt.inputs["pixel_values"])
    check_boxes(prompt, found)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(112, 84), (300, 170), (90, 230)])
def test_a_mark_in_the_picture_as_given_moves_the_tokens_that_its_box_names(name, size):
    lens = lens_of(name)
    width, height = size
    mark = (width // 2, height // 3, width // 2 + width // 4, height // 3 + height // 4)
    before, after = (lens.prompt("[IMG]?", images=picture(*size, m)) for m in (None, mark))
    moved = changed(features(lens, before.inputs), features(lens, after.inputs), before)
    check_mark(before, moved, mark, halo=(2.5 * max(size) / 112,) * 2)
    assert before.spans[0][0].region == (0, 0, width, height)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", NAMES)
def test_rows_of_a_batch_have_their_own_pictures_and_padding(name, side):
    lens = lens_of(name)
    lens.processor.tokenizer.padding_side = side
    texts = ["no picture at all", "[IMG] two [IMG]", "x [IMG]"]
    pictures = [None, [picture(56, 84), picture(112, 28)], [picture(84, 84)]]
    prompt = lens.prompt(texts, images=pictures)
    check_bookkeeping(lens, prompt, image_id(lens))
    check_it_runs(lens, prompt)
    alone = [lens.prompt(t, images=p) for t, p in zip(texts, pictures, strict=True)]
    for row, single in enumerate(alone):
        shift = 0 if side == "right" else prompt.n_tokens - single.n_tokens
        moved = [[p + shift for p in span.positions] for span in single.spans[0]]
        assert [list(span.positions) for span in prompt.spans[row]] == moved
        assert [(s.kind, s.image, s.grid, s.region) for s in prompt.spans[row]] == [
            (s.kind, s.image, s.grid, s.region) for s in single.spans[0]
        ]
    from_tensors = lens.prompt(inputs=dict(prompt.inputs))  # rows without a picture do not shift the sizes
    assert [s.grid for row in from_tensors.spans for s in row] == [s.grid for row in prompt.spans for s in row]


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(20, 400), st.integers(20, 400)), min_size=1, max_size=3),
    name=st.sampled_from(NAMES),
)
def test_spans_cover_the_placeholders_and_boxes_tile_every_picture(sizes, name):
    lens = lens_of(name)
    prompt = lens.prompt("[IMG]" * len(sizes) + "?", images=[picture(*size) for size in sizes])
    check_bookkeeping(lens, prompt, image_id(lens))
    images = [span for span in prompt.spans[0] if span.kind == "image"]
    assert len(images) == len(sizes)
    for span, (width, height) in zip(images, sizes, strict=True):
        assert span.region == pytest.approx((0, 0, width, height))
        boxes = [prompt.box(position) for position in span.positions]
        assert sum((b.x1 - b.x0) * (b.y1 - b.y0) for b in boxes) == pytest.approx(width * height)
        assert len({(round(b.x0, 6), round(b.y0, 6)) for b in boxes}) == len(boxes)


def test_llava_on_a_pixtral_tower_is_served_by_the_pixtral_adapter():
    assert lens_of("pixtral").adapter.family == "pixtral"
    assert lens_of("mistral3").adapter.family == "mistral3"


def inputs_of(name, *lines, **changes):
    ids = [1, 5]
    for width in lines:
        ids += [lens_of(name).processor.image_token_id] * width + [lens_of(name).processor.image_break_token_id]
    return {"input_ids": torch.tensor([ids]), "pixel_values": torch.randn(1, 3, 56, 84), **changes}


def test_without_sizes_a_pixtral_tower_takes_the_whole_tensor():
    prompt = lens_of("pixtral").prompt(inputs=inputs_of("pixtral", 6, 6, 6, 6))
    assert prompt.spans[0][0].grid == (4, 6)
    check_it_runs(lens_of("pixtral"), prompt)


@pytest.mark.parametrize("lines", [(6, 6, 6), (6, 6, 5, 6), (24,)])
def test_rows_that_do_not_fit_the_size_are_refused(lines):
    message = "picture 0, processed to 84 x 56 pixels, makes 4 rows of 6 image tokens"
    with pytest.raises(LensError, match=message):
        lens_of("pixtral").prompt(inputs=inputs_of("pixtral", *lines))


def test_a_picture_cut_off_before_its_end_token_is_refused():
    inputs = inputs_of("pixtral", 6, 6, 6, 6)
    with pytest.raises(LensError, match="each followed by one break"):
        lens_of("pixtral").prompt(inputs={**inputs, "input_ids": inputs["input_ids"][:, :-1]})


def test_more_rows_than_pictures_are_refused():
    with pytest.raises(LensError, match=r"12 image tokens from position 30 on belong to no picture\n.*1 pictures"):
        lens_of("pixtral").prompt(inputs=inputs_of("pixtral", 6, 6, 6, 6, 6, 6))


def test_where_only_features_are_given_the_masks_are_the_same_and_the_grid_is_not_known():
    """`generate` encodes pictures first, and does not pass their sizes on."""
    lens = lens_of("mistral3")
    known = lens.prompt(inputs=inputs_of("mistral3", 3, 3))
    inputs = inputs_of("mistral3", 3, 3, pixel_values=None, mm_encoder_outputs={"image": nn.Identity()})
    inputs.pop("image_sizes", None)
    prompt = lens.prompt(inputs=inputs)
    for name in ("image", "marker", "text", "after_image"):
        assert torch.equal(prompt.mask(name), known.mask(name)), name
    assert {span.grid for span in prompt.spans[0]} == {None}
