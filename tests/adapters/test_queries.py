"""Idefics 2, BLIP-2 and InstructBLIP: queries that look at the whole picture, against the real processors."""

import pytest
import torch
import transformers as hf

from lmm_lens import Lens, LensError
from lmm_lens.adapters import adapter_for
from tests.support.evidence import check_bookkeeping, check_it_runs, picture
from tests.support.families import lens_of
from tests.support.families.queries import blip_2

NO_LAYOUT = "the layout of these 8 visual tokens is not known"


BLIPS = ["blip-2", "instructblip"]
SPLIT = [False, True]


def idefics2_lens(split: bool) -> Lens:
    return lens_of("idefics2" if split else "idefics2 whole")


@pytest.mark.parametrize("name", ["idefics2", "idefics2 whole", *BLIPS])
def test_queries_are_visual_and_have_no_place_in_the_picture(name):
    lens = lens_of(name)
    assert lens.adapter.family == name.split()[0]
    assert not lens.adapter.has_grid
    prompt = lens.prompt("what is it?", images=picture(56, 84))
    check_bookkeeping(lens, prompt, lens.adapter.image_token_id)
    check_it_runs(lens, prompt)
    assert prompt.mask("image").sum() == 8 * (5 if name == "idefics2" else 1)
    assert {(s.image, s.grid, s.region) for s in prompt.spans[0] if s.kind == "image"} == {(0, None, None)}
    with pytest.raises(LensError, match=NO_LAYOUT):
        prompt.patch_at(1, 1)


@pytest.mark.parametrize("split", SPLIT)
@pytest.mark.parametrize("side", ["left", "right"])
def test_idefics2_counts_pictures_and_tiles_in_every_row(split, side):
    lens = idefics2_lens(split)
    lens.processor.tokenizer.padding_side = side
    texts = ["no picture at all", "<image> two <image>", "<image><image> x <image>"]
    pictures = [None, [picture(56, 84), picture(112, 28)], [picture(84, 84)] * 3]
    prompt = lens.prompt(texts, images=pictures)
    check_bookkeeping(lens, prompt, lens.adapter.image_token_id)
    check_it_runs(lens, prompt)
    for row, n in enumerate([0, 2, 3]):
        images = [(s.image, s.tile) for s in prompt.spans[row] if s.kind == "image"]
        assert images == [(image, tile) for image in range(n) for tile in ([1, 2, 3, 4, 0] if split else [0])]
    fake = lens.processor.tokenizer.convert_tokens_to_ids("<fake_token_around_image>")
    assert torch.equal(prompt.mask("marker"), prompt.inputs["input_ids"] == fake)
    tensors = lens.prompt(inputs=dict(prompt.inputs))
    assert [(s.image, s.tile) for r in tensors.spans for s in r] == [(s.image, s.tile) for r in prompt.spans for s in r]


def test_the_fifth_run_of_a_split_picture_is_the_whole():
    """The pixels of the tiles tell: a mark in the last quarter is in the fourth and in the fifth."""
    lens = idefics2_lens(True)
    before, after = (lens.prompt("<image>", images=picture(56, 56, m)) for m in (None, (40, 40, 50, 50)))
    moved = (before.inputs["pixel_values"] != after.inputs["pixel_values"]).flatten(2).any(-1)[0].tolist()
    assert [s.tile for s, m in zip([s for s in before.spans[0] if s.kind == "image"], moved, strict=True) if m] == [
        4,
        0,
    ]


def test_without_a_processor_quarters_and_pictures_are_not_told_apart():
    prompt = idefics2_lens(True).prompt("<image>", images=picture(56, 56))
    bare = Lens(idefics2_lens(True).adapter.model).prompt(inputs=dict(prompt.inputs))
    assert [(s.image, s.tile) for s in bare.spans[0]] == [(None, 0)] * 5


@pytest.mark.parametrize(("n_tokens", "given"), [(7, r"\[7\]"), (16, r"\[16\]")])
def test_runs_of_another_length_are_refused(n_tokens, given):
    lens = idefics2_lens(False)
    ids = torch.tensor([[1, *[lens.adapter.image_token_id] * n_tokens, 5]])
    with pytest.raises(LensError, match=f"expected runs of 8 image tokens, 1 a picture\n.*{given}"):
        lens.prompt(inputs={"input_ids": ids, "pixel_values": torch.randn(1, 1, 3, 56, 56)})


@pytest.mark.parametrize("name", BLIPS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_blip_puts_the_queries_before_everything_even_padding(name, side):
    lens = lens_of(name)
    lens.processor.tokenizer.padding_side = side
    prompt = lens.prompt(["short", "a longer text"], images=[picture(56, 84), picture(30, 30)])
    check_bookkeeping(lens, prompt, lens.adapter.image_token_id)
    check_it_runs(lens, prompt)
    assert [[s.positions for s in row] for row in prompt.spans] == [[tuple(range(8))]] * 2
    assert prompt.mask("pad")[0].any()
    assert not lens.prompt(["only", "text"]).mask("visual").any()


@pytest.mark.parametrize("name", BLIPS)
@pytest.mark.parametrize("pictures", [[[picture(9, 9)] * 2, picture(9, 9)], [picture(9, 9), None]])
def test_blip_refuses_rows_with_any_other_number_of_pictures(name, pictures):
    with pytest.raises(LensError, match="takes exactly one picture a row"):
        lens_of(name).prompt(["a", "b"], images=pictures)


@pytest.mark.parametrize("name", BLIPS)
def test_blip_refuses_a_slot_in_the_text(name):
    with pytest.raises(LensError, match=r"expected one run of 8 image tokens a row.*\n.*leave '<image>' out"):
        lens_of(name).prompt("a <image>", images=picture(9, 9))


def test_an_old_blip_config_without_an_image_token_is_refused_with_the_way_out():
    model, _ = blip_2()
    model.config.image_token_index = None
    with pytest.raises(LensError, match=r"names no image token.*\n.*set model.config.image_token_index"):
        adapter_for(model)


def test_blip_on_an_encoder_with_a_decoder_is_refused():
    text = hf.T5Config(vocab_size=300, d_model=64, d_kv=16, d_ff=64, num_layers=1, num_heads=4)
    with pytest.raises(LensError, match="is an encoder-decoder"):
        adapter_for(blip_2("Blip2", text)[0])


def test_a_picture_too_thin_to_be_split_is_named():
    with pytest.raises(LensError, match=r"Idefics2Processor cannot process pictures of \[\(200, 1\)\]"):
        idefics2_lens(True).prompt("x", images=picture(200, 1))
