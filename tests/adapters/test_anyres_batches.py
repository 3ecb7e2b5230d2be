"""Batches of LLaVA-1.6 and its kin: several pictures, padding, tensors alone, and what does not fit."""

import pytest
import torch

from lmm_lens import LensError
from tests.support.evidence import check_it_runs
from tests.support.families import lens_of
from tests.support.families.llavas import ANYRES, check_bookkeeping, check_colours, ramp, seen, tokenizer


@pytest.fixture(params=ANYRES)
def lens(request):
    return lens_of(request.param)


@pytest.mark.parametrize("side", ["left", "right"])
def test_pictures_of_a_mixed_batch_are_told_apart(lens, side, monkeypatch):
    monkeypatch.setattr(tokenizer(), "padding_side", side)
    rows = [[], [ramp(50, 90)], [ramp(120, 60), ramp(70, 70)], []]
    texts = ["no picture", "one", "<image>two<image> pictures, with a long question", "none"]
    prompt = lens.prompt(texts, images=rows)
    check_bookkeeping(lens, prompt)
    assert [sorted({s.image for s in spans}) for spans in prompt.spans] == [[], [0], [0, 1], []]
    assert bool(prompt.mask("pad")[:, 0 if side == "left" else -1].any())
    found, start = seen(lens.model, prompt.inputs), 0
    for row in (1, 2):
        for image in range(len(rows[row])):
            positions = sorted(p for s in prompt.spans[row] if s.image == image for p in s.positions)
            check_colours(prompt, positions, found[start : start + len(positions)], row)
            start += len(positions)
            centre = [extent / 2 for extent in rows[row][image].size]
            assert prompt.patch_at(*centre, image=image, row=row) in positions
    assert start == len(found)
    check_it_runs(lens, prompt)


def test_neighbouring_pictures_form_one_run_and_are_cut_apart(lens):
    alone = lens.prompt("<image>x<image>y", images=[ramp(50, 90), ramp(110, 60)])
    joined = lens.prompt("<image><image>xy", images=[ramp(50, 90), ramp(110, 60)])
    shapes = [[(s.kind, s.image, s.tile, s.grid, s.region) for s in p.spans[0]] for p in (alone, joined)]
    assert shapes[0] == shapes[1]
    check_bookkeeping(lens, joined)


def test_tensors_alone_give_the_same_spans_in_pixels_of_the_original(lens):
    prompt = lens.prompt(["a", "<image>b<image>"], images=[[ramp(50, 90)], [ramp(110, 60), ramp(80, 80)]])
    assert lens.prompt(inputs=dict(prompt.inputs)).spans == prompt.spans


def test_newlines_are_known_by_their_vector_where_only_encoded_features_are_given(lens):
    """As in `generate`, which encodes the pictures and calls the model without their sizes."""
    prompt = lens.prompt(["a", "<image>b<image>", "c"], images=[[ramp(50, 90)], [ramp(110, 60), ramp(80, 80)], []])
    with torch.no_grad():
        given = {k: v for k, v in prompt.inputs.items() if k in ("pixel_values", "image_sizes", "batch_num_images")}
        features = lens.model.get_image_features(**given, return_dict=True)
        features.pooler_output[0][0, 0] = lens.model.model.image_newline[0]  # one number in common makes no newline
    bare = {name: prompt.inputs[name] for name in ("input_ids", "attention_mask")}
    encoded = lens.prompt(inputs={**bare, "mm_encoder_outputs": {"image": features}})
    assert all(
        torch.equal(encoded.mask(name), prompt.mask(name)) for name in ("image", "marker", "text", "after_image")
    )
    assert [{(s.kind, s.image, s.tile, s.positions) for s in spans} for spans in encoded.spans] == [
        {(s.kind, s.image, s.tile, s.positions) for s in spans} for spans in prompt.spans
    ]
    with pytest.raises(LensError, match=r"layout of these .* visual tokens is not known"):
        encoded.patch_at(10, 10)


def test_several_pictures_of_a_row_are_padded_to_squares_by_onevision():
    lens = lens_of("llava_onevision")
    spans = lens.prompt("what?", images=[ramp(90, 60), ramp(40, 80)]).spans[0]
    assert [(s.kind, s.image, s.tile, s.grid, len(s)) for s in spans] == [
        ("image", 0, 0, (5, 5), 25),
        ("marker", 0, 0, None, 1),
        ("image", 1, 0, (5, 5), 25),
        ("marker", 1, 0, None, 1),
    ]
    assert tuple(spans[0].region) == pytest.approx((0, -15, 87.5, 72.5))
    assert tuple(spans[2].region) == pytest.approx((-20, 0, 57.7777, 77.7777), abs=1e-3)


# ---------------------------------------------------------------------- what does not fit


def test_tensors_without_the_pictures_sizes_are_refused(lens):
    inputs = dict(lens.prompt("what?", images=ramp(90, 60)).inputs)
    del inputs["image_sizes"]
    with pytest.raises(LensError, match=r"needs image_sizes, the \(height, width\).*\n.*given .*pixel_values"):
        lens.prompt(inputs=inputs)


@pytest.mark.parametrize(
    ("more", "message"), [(-1, "which takes"), (3, "3 of its .* tokens are left for picture 1 of 1")]
)
def test_a_number_of_tokens_that_does_not_fit_the_pictures_is_refused(lens, more, message):
    inputs = dict(lens.prompt("what?", images=ramp(90, 60)).inputs)
    image = torch.full((1, 3), lens.model.config.image_token_id)
    ids = inputs["input_ids"]
    first = int((ids[0] == image[0, 0]).nonzero()[0])
    inputs["input_ids"] = (
        torch.cat([ids[:, :first], image[:, :more], ids[:, first:]], 1)
        if more > 0
        else torch.cat([ids[:, :first], ids[:, first + 1 :]], 1)
    )
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with pytest.raises(LensError, match=f"do not match in the run at positions(.|\n)*{message}"):
        lens.prompt(inputs=inputs)


def test_image_tokens_without_pixels_are_refused(lens):
    ids = lens.prompt("what?", images=ramp(90, 60)).inputs["input_ids"]
    with pytest.raises(LensError, match="no pixels were given"):
        lens.prompt(inputs={"input_ids": ids})
