"""LLaVA 1.5, VIP-LLaVA and Video-LLaVA's pictures: one square each, with every way their processors cut a picture."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmm_lens import LensError
from tests.support.evidence import check_bookkeeping, check_it_runs, check_mark, identity, supports
from tests.support.evidence import picture as grey
from tests.support.families import lens_of
from tests.support.families.llavas import check_colours, colours, ramp, tokenizer

NAMES = ["llava", "vipllava", "video_llava", "llava siglip 72", "llava padded", "llava class token"]


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def pixels_of(prompt):
    return prompt.inputs.get("pixel_values", prompt.inputs.get("pixel_values_images"))


def found(lens, prompt):
    """The mean colour of every patch of every picture: [picture, patch, 3]."""
    return colours(lens.model, pixels_of(prompt)[:, None])[:, 0]


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(NAMES), st.lists(st.tuples(st.integers(20, 250), st.integers(20, 250)), min_size=1, max_size=3))
def test_every_token_sees_the_colours_of_its_box_in_its_picture(name, sizes):
    lens = lens_of(name)
    prompt = lens.prompt("what?", images=[ramp(*size) for size in sizes])
    check_bookkeeping(lens, prompt, lens.adapter.image_token_id)
    spans = [span for span in prompt.spans[0] if span.kind == "image"]
    assert [(span.image, span.tile) for span in spans] == [(image, 0) for image in range(len(sizes))]
    for span, seen in zip(spans, found(lens, prompt), strict=True):
        least = 0 if name == "llava padded" else 16  # margins may reach all
        check_colours(prompt, list(span.positions), seen, least=least)


@pytest.mark.parametrize("side", ["left", "right"])
def test_pictures_of_a_mixed_batch_are_told_apart(name, side, monkeypatch):
    monkeypatch.setattr(tokenizer(), "padding_side", side)
    lens = lens_of(name)
    rows = [[], [ramp(50, 90)], [ramp(120, 100), ramp(70, 70)]]
    prompt = lens.prompt(["none", "one", "<image>two<image>, with a long question"], images=rows)
    assert [[s.image for s in spans if s.kind == "image"] for spans in prompt.spans] == [[], [0], [0, 1]]
    seen = iter(found(lens, prompt))
    for row in (1, 2):
        for span in (s for s in prompt.spans[row] if s.kind == "image"):
            check_colours(prompt, list(span.positions), next(seen), row)
    assert bool(prompt.mask("pad")[:, 0 if side == "left" else -1].any())
    check_it_runs(lens, prompt)


@pytest.mark.parametrize("size", [(200, 90), (90, 170)])
def test_a_mark_in_the_picture_moves_the_tokens_whose_box_it_meets(name, size):
    lens, mark = lens_of(name), (40, 30, 100, 75) if size[0] > size[1] else (20, 50, 60, 110)
    prompts = [lens.prompt("what?", images=grey(*size, painted)) for painted in (None, mark)]
    before, after = (found(lens, prompt)[0] for prompt in prompts)
    moved = ((before - after).abs().amax(-1) > 1e-3).tolist()
    positions = prompts[0].mask("image")[0].nonzero().flatten().tolist()
    check_mark(prompts[0], {p for p, is_moved in zip(positions, moved, strict=True) if is_moved}, mark, halo=(10, 10))


def test_a_tower_that_leaves_pixels_out_is_not_mapped_beyond_them():
    lens = lens_of("llava siglip 72")
    prompt = lens.prompt("what?", images=ramp(72, 72))
    positions = prompt.mask("image")[0].nonzero().flatten().tolist()
    with identity(lens.model.model.vision_tower.encoder.layers):
        seen = supports(lambda x: lens.model.get_image_features(pixel_values=x).pooler_output[0], pixels_of(prompt))
    assert [prompt.box(position) for position in positions] == [pytest.approx(box) for _, box in seen]
    with pytest.raises(LensError, match=r"no visual token covers pixel \(71, 71\)"):
        prompt.patch_at(71, 71)
    assert lens.prompt(inputs=dict(prompt.inputs)).spans[0][0].region == prompt.spans[0][0].region


def test_a_class_token_that_is_kept_is_a_marker():
    lens = lens_of("llava class token")
    prompt = lens.prompt("what?", images=[ramp(60, 60), ramp(50, 80)])
    assert [(s.kind, len(s), s.image) for s in prompt.spans[0]] == [
        ("marker", 1, 0),
        ("image", 16, 0),
        ("marker", 1, 1),
        ("image", 16, 1),
    ]
    with torch.no_grad():
        features = lens.model.get_image_features(pixel_values=pixels_of(prompt)).pooler_output
    assert sum(len(f) for f in features) == 34
    check_it_runs(lens, prompt)


@pytest.mark.parametrize("height", [1, 3])
def test_pictures_whose_rows_would_be_taken_for_channels_are_refused(height):
    """Video-LLaVA's processor reads an array of [3, width, 3] as channels first, without a word."""
    with pytest.raises(LensError, match=rf"1 or 3 rows of pixels of \[\(200, {height}\)\] for colour channels"):
        lens_of("video_llava").prompt("x", images=[grey(50, 50), grey(200, height)])
    assert lens_of("video_llava").prompt("x", images=grey(200, 2)).spans[0]
