"""Gemma 4: pictures and frames that keep their shape, against the real processor."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmm_lens import Lens, LensError
from tests.support.evidence import changed, check_bookkeeping, check_it_runs, check_mark, identity, picture
from tests.support.families import lens_of
from tests.support.families.gemma4 import PATCH, POOL


def lens() -> Lens:
    return lens_of("gemma4")


def image_id() -> int:
    return lens().adapter.image_token_id


def features(inputs, kind="image", pixels=None):
    """The feature of every visual token, in order, each from its own patches alone."""
    model = lens().adapter.model.model
    name = "pixel_values" if kind == "image" else "pixel_values_videos"
    with identity(model.vision_tower.encoder.layers):
        return model.vision_tower(inputs[name] if pixels is None else pixels, inputs[f"{kind}_position_ids"])[0]


def test_every_picture_keeps_its_shape_between_markers():
    sizes = [(56, 84), (300, 50), (61, 60)]
    prompt = lens().prompt("a <|image|> b <|image|><|image|>", images=[picture(*size) for size in sizes])
    check_bookkeeping(lens(), prompt, image_id())
    check_it_runs(lens(), prompt)
    assert torch.equal(prompt.mask("visual"), prompt.inputs["mm_token_type_ids"] == 1)
    images = [s for s in prompt.spans[0] if s.kind == "image"]
    assert [(s.image, s.tile, s.region) for s in images] == [(i, 0, (0, 0, *size)) for i, size in enumerate(sizes)]
    counted = lens().processor._get_num_multimodal_tokens(image_sizes=[size[::-1] for size in sizes])
    assert [len(s) for s in images] == counted.num_image_tokens
    assert images[1].grid == (3, 20)
    assert [prompt.tokens[0][p] for p in prompt.mask("marker")[0].nonzero().flatten()] == ["<begin>", "<end>"] * 3


@pytest.mark.parametrize("kind", ["image", "video"])
def test_the_box_of_every_token_is_where_its_gradient_lies(kind):
    if kind == "image":
        prompt = lens().prompt("<|image|> <|image|>", images=[picture(56, 84), picture(300, 50)])
    else:
        prompt = lens().prompt("<|video|>", videos=[picture(56, 84)] * 2)
    inputs = prompt.inputs
    prompt = lens().prompt(inputs=dict(inputs))
    pixels = inputs["pixel_values" if kind == "image" else "pixel_values_videos"].clone().requires_grad_(True)
    tokens = prompt.mask(kind)[0].nonzero().flatten().tolist()
    for position, token in zip(tokens, features(inputs, kind, pixels), strict=True):
        (slope,) = torch.autograd.grad(token.square().sum(), pixels, retain_graph=True)
        which, patch = slope.abs().sum(-1).nonzero(as_tuple=True)
        places = inputs[f"{kind}_position_ids"][which, patch]
        (low, high), (index,) = (places.amin(0) * PATCH, (places.amax(0) + 1) * PATCH), which.unique().tolist()
        assert len(places) == POOL**2
        assert prompt.box(position) == (*low.tolist(), *high.tolist())
        where = {"image": index} if kind == "image" else {"video": 0, "frame": index}
        assert prompt.positions_in_box(prompt.box(position), **where) == (position,)


@pytest.mark.parametrize("size", [(112, 84), (300, 110), (90, 230)])
def test_a_mark_in_the_picture_as_given_moves_the_tokens_that_its_box_names(size):
    width, height = size
    mark = (width // 2, height // 3, width // 2 + width // 4, height // 3 + height // 4)
    before, after = (lens().prompt("<|image|>?", images=picture(*size, m)) for m in (None, mark))
    moved = changed(features(before.inputs), features(after.inputs), before)
    grid = before.spans[0][1].grid
    check_mark(before, moved, mark, halo=(2.5 * width / (grid[1] * 8), 2.5 * height / (grid[0] * 8)))


def test_a_video_is_one_block_a_frame():
    films = [[picture(56, 84)] * 3, [picture(100, 40)] * 2]
    prompt = lens().prompt("<|video|> and <|video|>", videos=films)
    check_it_runs(lens(), prompt)
    assert torch.equal(prompt.mask("video"), prompt.inputs["mm_token_type_ids"] == 2)
    seen = [(s.video, s.frame, s.image, s.region) for s in prompt.spans[0] if s.kind == "video"]
    assert seen == [(0, i, None, (0, 0, 56, 84)) for i in range(3)] + [(1, i, None, (0, 0, 100, 40)) for i in range(2)]
    assert prompt.mask("marker").sum() == 2 * 5
    marked = lens().prompt(
        "<|video|> and <|video|>", videos=[[*films[0][:1], picture(56, 84, (28, 42, 56, 84)), films[0][2]], films[1]]
    )
    before, after = (features(p.inputs, "video") for p in (prompt, marked))
    moved = changed(before, after, prompt)
    assert moved >= set(prompt.positions_in_box((33, 48, 56, 84), video=0, frame=1))
    assert moved <= set(prompt.positions_in_box((23, 36, 56, 84), video=0, frame=1))


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_a_batch_have_their_own_pictures_videos_and_padding(side):
    lens().processor.tokenizer.padding_side = side
    texts = ["no picture at all", "<|image|> two <|image|><|video|>", "x <|image|><|video|>"]
    pictures = [None, [picture(200, 60), picture(60, 60)], [picture(90, 300)]]
    videos = [None, [[picture(60, 60)] * 2], [[picture(90, 30)] * 3]]
    prompt = lens().prompt(texts, images=pictures, videos=videos)
    check_it_runs(lens(), prompt)
    assert torch.equal(prompt.mask("image"), prompt.inputs["mm_token_type_ids"] == 1)
    for row, (text, images, films) in enumerate(zip(texts, pictures, videos, strict=True)):
        single = lens().prompt(text, images=images, videos=films)
        shift = int(prompt.mask("all")[row].int().argmax())
        for span, alone in zip(prompt.spans[row], single.spans[0], strict=True):
            assert list(span.positions) == [p + shift for p in alone.positions]
            for name in ("kind", "image", "video", "frame", "grid", "region"):
                assert getattr(span, name) == getattr(alone, name)
    tensors = lens().prompt(inputs=dict(prompt.inputs))
    assert [(s.grid, s.video, s.frame) for r in tensors.spans for s in r] == [
        (s.grid, s.video, s.frame) for r in prompt.spans for s in r
    ]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(20, 400), st.integers(20, 400)), min_size=1, max_size=3))
def test_spans_cover_the_placeholders_and_boxes_tile_every_picture(sizes):
    prompt = lens().prompt("<|image|>" * len(sizes), images=[picture(*size) for size in sizes])
    check_bookkeeping(lens(), prompt, image_id())
    images = [s for s in prompt.spans[0] if s.kind == "image"]
    for span, (width, height) in zip(images, sizes, strict=True):
        boxes = [prompt.box(p) for p in span.positions]
        assert sum((b.x1 - b.x0) * (b.y1 - b.y0) for b in boxes) == pytest.approx(width * height)
        assert len({(round(b.x0, 6), round(b.y0, 6)) for b in boxes}) == len(boxes)


@pytest.mark.parametrize(
    ("left_out", "text", "given"),
    [
        ("image_position_ids", "<|image|>", {"images": picture(56, 84)}),
        ("num_frames_per_video", "<|video|>", {"videos": [picture(56, 84)]}),
        ("video_position_ids", "<|video|>", {"videos": [picture(56, 84)]}),
    ],
)
def test_tensors_without_the_places_of_the_patches_are_refused(left_out, text, given):
    inputs = dict(lens().prompt(text, **given).inputs)
    del inputs[left_out]
    with pytest.raises(LensError, match=f"expected {left_out}"):
        lens().prompt(inputs=inputs)


def test_a_run_of_another_length_than_the_picture_is_refused():
    inputs = dict(lens().prompt("<|image|>", images=picture(56, 84)).inputs)
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        inputs[name] = torch.cat([inputs[name][:, :2], inputs[name][:, 3:]], 1)
    with pytest.raises(LensError, match="10 x 6 patches cannot hold 59 visual tokens"):
        lens().prompt(inputs=inputs)
