"""The HD layout: grids, the vectors after their rows, and what does not fit; every patch against its own gradient."""

import pytest
import torch

from lmm_lens.adapters import Picture, marked
from lmm_lens.errors import PromptError
from tests.support.remote_code import phi3v
from tests.support.remote_code.cases import case


def prompt_of(**changes):
    return case("Phi35Vision").lens.prompt(inputs={**phi3v.inputs(), **changes})


def test_a_picture_has_a_grid_of_all_crops_and_one_of_the_whole():
    spans = [span for span in prompt_of().spans[0] if span.kind == "image"]
    assert [(span.image, span.tile, span.grid, span.region[2:]) for span in spans] == [
        (0, 1, (12, 24), (672, 336)),
        (0, 0, (12, 12), (672, 336)),
        (1, 1, (12, 12), (336, 336)),
        (1, 0, (12, 12), (336, 336)),
    ]


@pytest.mark.parametrize("row", [0, 1])
def test_a_token_depends_on_the_pixels_of_its_box_and_on_no_others(row):
    model = case("Phi35Vision").model
    inputs = phi3v.inputs(2)
    pixels = inputs["pixel_values"].clone().requires_grad_()
    prompt = case("Phi35Vision").lens.prompt(inputs=inputs)
    embeds = model.model.vision_embed_tokens(inputs["input_ids"], pixels, inputs["image_sizes"])
    for span in prompt.spans[row]:
        for position in span.positions[:: max(1, len(span) // 7)]:
            (gradient,) = torch.autograd.grad(embeds[row, position].sum(), pixels, retain_graph=True)
            touched = gradient.abs().sum(2).nonzero().tolist()
            if span.kind == "marker":
                assert not touched
                continue
            assert {image for image, *_ in touched} == {row}
            box = span.box(position)
            crops = {crop for _, crop, *_ in touched}
            assert len(crops) == 1
            (crop,) = crops
            assert (crop == 0) == (span.tile == 0)
            scale = span.region.x1 / 336 if span.tile == 0 else 1  # the whole picture is squeezed into one crop
            left = 336 * (crop - 1) if span.tile else 0
            seen = [min(x for *_, x in touched) * scale + left, min(y for _, _, y, _ in touched)]
            seen += [(max(x for *_, x in touched) + 1) * scale + left, max(y for _, _, y, _ in touched) + 1]
            assert seen == pytest.approx(list(box))


def test_more_or_fewer_tokens_than_the_sizes_make_are_refused():
    with pytest.raises(
        PromptError, match="313 image tokens are left for a picture of 672 x 672 pixels, which takes 757"
    ):
        prompt_of(image_sizes=torch.tensor([[336, 672], [672, 672]]))
    with pytest.raises(PromptError, match="144 image tokens are left after 2 pictures"):
        prompt_of(image_sizes=torch.tensor([[336, 336], [336, 336]]))


def test_with_an_unknown_place_in_the_picture_given_there_is_no_grid():
    adapter = case("Phi35Vision").lens.adapter
    ids = adapter.expanded(phi3v.inputs()).tolist()
    spans = adapter.spans(ids, phi3v.inputs(), [[Picture(0, (500, 200)), Picture(1, (90, 90))]])[0]
    assert {span.grid for span in spans} == {None}


def test_ranges_of_positions_are_marked_in_a_copy():
    ids = torch.arange(10).reshape(2, 5)
    made = marked(ids, [torch.tensor([[1, 3]]), [(0, 1), (4, 5)]], -1)
    assert made.tolist() == [[0, -1, -1, 3, 4], [-1, 6, 7, 8, -1]]
    assert ids.tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
