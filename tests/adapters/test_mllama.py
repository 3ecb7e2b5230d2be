"""Llama 3.2 Vision: one stand-in a picture in the text, the pictures in the cross-attention, with its processor."""

import pytest
import torch

from lmm_lens import Lens, LensError
from lmm_lens.prompts.build import from_tensors
from tests.support.evidence import check_bookkeeping, check_it_runs, picture
from tests.support.families import lens_of


def lens() -> Lens:
    return lens_of("mllama")


def test_a_picture_is_one_stand_in_without_a_grid():
    prompt = lens().prompt(
        "a <|image|> b <|image|><|image|> c", images=[picture(56, 84), picture(99, 20), picture(9, 9)]
    )
    check_bookkeeping(lens(), prompt, lens().adapter.image_token_id)
    check_it_runs(lens(), prompt)
    assert [(s.kind, s.image, len(s), s.grid) for s in prompt.spans[0]] == [("image", i, 1, None) for i in range(3)]
    assert not lens().adapter.has_grid
    with pytest.raises(LensError, match="the layout of these 1 visual tokens is not known"):
        prompt.patch_at(1, 1)


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_a_batch_have_their_own_pictures_and_padding(side):
    lens().processor.tokenizer.padding_side = side
    prompt = lens().prompt(
        ["<|image|> two <|image|>", "x <|image|> and a longer text"],
        images=[[picture(56, 84), picture(112, 28)], [picture(84, 84)]],
    )
    check_bookkeeping(lens(), prompt, lens().adapter.image_token_id)
    check_it_runs(lens(), prompt)
    assert [[s.image for s in row] for row in prompt.spans] == [[0, 1], [0]]


def test_text_alone_runs():
    check_it_runs(lens(), lens().prompt(["no picture", "at all"]))


def test_a_row_without_a_picture():
    prompt = lens().prompt(["no picture", "x <|image|>"], images=[None, picture(84, 84)])
    check_it_runs(lens(), prompt)


def test_stand_ins_without_their_picture_are_refused():
    inputs = lens().prompt("<|image|><|image|>", images=[picture(9, 9)] * 2).inputs
    with pytest.raises(LensError, match="the text has 2 image tokens but 1 pictures were given"):
        from_tensors(lens().adapter, inputs, lens().device, [[picture(9, 9)]])


def test_the_keys_of_a_row_are_its_own_real_tiles():
    """A row with fewer pictures than another is padded with pictures whose first tile counts as shown."""
    pictures = [[picture(56, 84), picture(20, 20)], [picture(200, 50)], None]
    prompt = lens().prompt(["<|image|><|image|>", "<|image|>", "none"], images=pictures)
    keys = lens().adapter.cross_keys(prompt.inputs)
    shown = prompt.inputs["aspect_ratio_mask"].sum((1, 2)) > 0
    assert shown.all()
    sees = prompt.inputs["cross_attention_mask"].amax(1)  # what the processor lets any token see: batch picture tile
    assert torch.equal(
        keys, sees.bool().flatten(1).repeat_interleave(lens().adapter.model.model.vision_model.num_patches, 1)
    )
    assert keys.any(1).tolist() == [True, True, False]
    assert lens().adapter.cross_keys({}) is None
