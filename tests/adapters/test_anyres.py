"""LLaVA-1.6 and its kin: the whole picture, then the grid of its crops, against pixels, gradients and the model."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lmm_lens import LensError
from tests.support.evidence import check_it_runs, check_mark, identity, supports
from tests.support.evidence import picture as grey
from tests.support.families import lens_of
from tests.support.families.llavas import ANYRES, check_bookkeeping, check_colours, placeholders, ramp, seen

SIZES = {"llava_next": [(112, 80), (40, 112), (168, 56)], "llava_onevision": [(144, 100), (60, 144), (216, 200)]}


@pytest.fixture(params=ANYRES)
def lens(request):
    return lens_of(request.param)


# ---------------------------------------------------------------------- one picture


def test_a_picture_is_a_base_grid_and_a_grid_of_its_crops_with_newlines_between(lens):
    prompt = lens.prompt("what?", images=ramp(90, 110))
    check_bookkeeping(lens, prompt)
    base, crops, newlines = prompt.spans[0]
    assert [(s.kind, s.image, s.tile) for s in prompt.spans[0]] == [("image", 0, 0), ("image", 0, 1), ("marker", 0, 1)]
    assert base.grid == (lens.adapter.side,) * 2
    assert crops.grid[0] == len(newlines)
    assert newlines.positions == tuple(
        crops.positions[crops.grid[1] - 1 :: crops.grid[1]][i] + 1 for i in range(len(newlines))
    )
    check_it_runs(lens, prompt)


def test_the_markers_are_the_tokens_whose_feature_is_the_newline_vector(lens):
    prompt = lens.prompt("what?", images=ramp(110, 70))
    inputs = {name: prompt.inputs[name] for name in ("pixel_values", "image_sizes")}
    with torch.no_grad():
        features = torch.cat(list(lens.model.get_image_features(**inputs).pooler_output))
    found = [
        p for p, f in zip(placeholders(lens, prompt), features, strict=True) if f.equal(lens.model.model.image_newline)
    ]
    assert found == prompt.mask("marker")[0].nonzero().flatten().tolist()


@pytest.mark.parametrize(("name", "size"), [(name, size) for name in SIZES for size in SIZES[name]])
def test_the_box_of_every_token_is_where_its_gradient_lies(name, size):
    """On pictures that fit the crops without resizing, so that the crops' pixels are the picture's."""
    lens = lens_of(name)
    prompt = lens.prompt("what?", images=ramp(*size))
    model, inputs = lens.model, prompt.inputs
    edge = model.config.vision_config.image_size
    base, crops, _ = prompt.spans[0]

    def features(tiles):
        packed = model.get_image_features(pixel_values=tiles[None], image_sizes=inputs["image_sizes"]).pooler_output[0]
        return [feature for feature in packed if not feature.equal(model.model.image_newline)]

    with identity(model.model.vision_tower.encoder.layers):
        found = supports(features, inputs["pixel_values"][0])
    down, across = -(-size[1] // edge), -(-size[0] // edge)
    pad_x, pad_y = (across * edge - size[0]) // 2, (down * edge - size[1]) // 2
    assert len(found) == len(base) + len(crops)
    for position, (tile, (x0, y0, x1, y1)) in zip(base.positions + crops.positions, found, strict=True):
        if tile == 0:
            squeezed = (x0 * size[0] / edge, y0 * size[1] / edge, x1 * size[0] / edge, y1 * size[1] / edge)
            assert prompt.box(position) == pytest.approx(squeezed)
        else:
            row, column = divmod(tile - 1, across)
            left, top = column * edge - pad_x, row * edge - pad_y
            assert prompt.box(position) == (x0 + left, y0 + top, x1 + left, y1 + top)
            assert prompt.patch_at(x0 + left, y0 + top) == position


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(ANYRES), st.integers(8, 250), st.integers(8, 250))
def test_every_token_sees_the_colours_of_its_box_whatever_the_size(name, width, height):
    lens = lens_of(name)
    prompt = lens.prompt("what?", images=ramp(width, height))
    check_bookkeeping(lens, prompt)
    found = seen(lens.model, prompt.inputs)
    assert found[:, 0].isnan().tolist() == prompt.mask("marker")[0, placeholders(lens, prompt)].tolist()
    may_shrink = prompt.inputs["pixel_values"].shape[1] > 10  # then a token may mix patches on both sides of a gap
    check_colours(prompt, placeholders(lens, prompt), found, near=2 if may_shrink else 0.75)


@settings(max_examples=50, deadline=None)
@given(st.integers(8, 250), st.integers(8, 250))
def test_the_grid_of_crops_has_no_gap_and_no_overlap_where_patches_fill_the_crops(width, height):
    prompt = lens_of("llava_next").prompt("what?", images=grey(width, height))
    assume(len(prompt.spans[0]) == 3)
    base, crops, _ = prompt.spans[0]
    assert tuple(base.region) == (0, 0, width, height)
    for edges, first, last in (
        (crops.rows, crops.region.y0, crops.region.y1),
        (crops.columns, crops.region.x0, crops.region.x1),
    ):
        assert [edges[0][0], edges[-1][1]] == [first, last]
        assert [b for _, b in edges[:-1]] == pytest.approx([a for a, _ in edges[1:]])
    # unpadding may cut half a patch of the picture from opposite sides, never more
    tall, wide = (edges[0][1] - edges[0][0] for edges in (crops.rows, crops.columns))
    assert crops.region.x0 <= wide / 2 + 1
    assert crops.region.x1 >= width - wide / 2 - 1
    assert crops.region.y0 <= tall / 2 + 1
    assert crops.region.y1 >= height - tall / 2 - 1


@pytest.mark.parametrize("size", [(65, 8), (8, 65)])
def test_a_picture_too_narrow_for_its_crops_keeps_its_base_grid_alone(size):
    """The model unpads all rows, or all columns, whose newlines then stay."""
    lens = lens_of("llava_next")
    prompt = lens.prompt("what?", images=ramp(*size))
    check_bookkeeping(lens, prompt)
    assert [(s.kind, len(s)) for s in prompt.spans[0]] == [("image", 16), ("marker", 8)][: 1 + (size == (8, 65))]
    check_it_runs(lens, prompt)


def test_the_finest_grid_answers_and_the_whole_picture_where_it_sees_nothing():
    """SigLIP's crops leave their last pixels out: here 2 of 72."""
    prompt = lens_of("llava_onevision").prompt("what?", images=ramp(144, 144))
    base, crops, _ = prompt.spans[0]
    assert prompt.patch_at(69, 69) in crops.positions
    assert prompt.patch_at(71, 20) in base.positions
    assert prompt.patch_at(72, 72) in crops.positions
    with pytest.raises(LensError, match="no visual token covers pixel"):
        prompt.patch_at(143, 143)
    assert {p in crops.positions for p in prompt.positions_in_box((0, 0, 20, 20))} == {True, False}


def test_too_many_patches_are_shrunk_and_their_boxes_grow_with_it():
    lens = lens_of("llava_onevision")
    prompt = lens.prompt("what?", images=ramp(250, 250))
    crops = prompt.spans[0][1]
    assert crops.grid == (15, 15)  # of 20 x 20: the square root of 9 x 25
    assert tuple(crops.region) == pytest.approx((0, 0, 250 * 286 / 288, 250 * 286 / 288))
    # column 3 holds patches 4 and a third of 5, between which lie the 2 pixels of the first crop that no patch sees
    assert crops.columns[3] == pytest.approx((56 * 250 / 288, (72 + 14 / 3) * 250 / 288))
    check_colours(prompt, placeholders(lens, prompt), seen(lens.model, prompt.inputs), near=2)
    check_it_runs(lens, prompt)


@pytest.mark.parametrize("size", [(200, 90), (60, 170)])
def test_a_mark_in_the_picture_moves_the_tokens_whose_box_it_meets(lens, size):
    mark = (20, 30, 50, 70)
    prompts = [lens.prompt("what?", images=grey(*size, painted)) for painted in (None, mark)]
    before, after = (seen(lens.model, prompt.inputs) for prompt in prompts)
    differs = ((before - after).nan_to_num().abs().amax(-1) > 1e-3).tolist()
    moved = {p for p, is_moved in zip(placeholders(lens, prompts[0]), differs, strict=True) if is_moved}
    check_mark(prompts[0], moved, mark, halo=(10, 10))
