"""Tiles whose tokens, tensors or pictures do not fit are refused, and what cannot be known is left open."""

import pytest
import torch

from lmm_lens import LensError
from lmm_lens.adapters import Picture
from tests.support.evidence import identity, picture
from tests.support.families import lens_of
from tests.support.families.tile_evidence import check_spelling, entering, spelling, vision_layers
from tests.support.families.tiled import NAMES
from tests.support.torchvision_cpu import load

each = pytest.mark.parametrize("name", list(NAMES))


def inputs_of(name, *sizes, text="{}why?"):
    lens = lens_of(name)
    slots = lens.adapter.image_slot * len(sizes)
    return dict(lens.prompt(text.format(slots), images=[picture(*size) for size in sizes]).inputs)


@each
def test_a_prompt_that_was_cut_off_is_refused(name):
    inputs = inputs_of(name, (70, 40))
    cut = {key: value[:, :-10] if key in ("input_ids", "attention_mask") else value for key, value in inputs.items()}
    n_tokens = int((inputs["input_ids"] == lens_of(name).adapter.image_token_id).sum())
    with pytest.raises(
        LensError, match=rf"image tokens, but the model makes {n_tokens} of these pixels \(.*\n.*cut nothing"
    ):
        lens_of(name).prompt(inputs=cut)


@each
def test_pixels_of_fewer_tiles_than_the_text_has_are_refused(name):
    inputs = inputs_of(name, (70, 40))
    pixels = inputs["pixel_values"]
    fewer = {"pixel_values": pixels[:, :-1] if pixels.ndim == 5 else pixels[:-1]}
    if name == "lfm2_vl":
        fewer["spatial_shapes"] = inputs["spatial_shapes"][:-1]
    with pytest.raises(LensError, match=r"image tokens, but the model makes .* of these pixels"):
        lens_of(name).prompt(inputs={**inputs, **fewer})


@pytest.mark.parametrize("name", [name for name in NAMES if name != "internvl"])
def test_placeholders_outside_the_tags_are_refused(name):
    """One tile's first token and the tag before it change places: no processor writes that."""
    inputs = inputs_of(name, (24, 24))
    ids = inputs["input_ids"].clone()
    first = int((ids[0] == lens_of(name).adapter.image_token_id).nonzero()[0])
    start = int(lens_of(name).prompt(inputs=inputs).mask("marker")[0].nonzero()[0])
    ids[0, [start, first]] = ids[0, [first, start]]
    with pytest.raises(LensError, match=f"are not between the tags of {lens_of(name).adapter.family}\n.*its processor"):
        lens_of(name).prompt(inputs={**inputs, "input_ids": ids})


def test_a_run_that_is_no_whole_number_of_tiles_is_refused():
    inputs = inputs_of("internvl", (24, 24), (24, 24), text="{}why?")
    ids = inputs["input_ids"].clone()
    held = (ids[0] == lens_of("internvl").adapter.image_token_id).nonzero().flatten()
    between = int(held[8]) + 1  # the tag that ends the first picture moves one placeholder on
    ids[0, [between - 1, between]] = ids[0, [between, between - 1]]
    with pytest.raises(
        LensError, match=r"8 image tokens at positions .* are no whole number of tiles\n.*9 tokens of each"
    ):
        lens_of("internvl").prompt(inputs={**inputs, "input_ids": ids})


def test_tags_that_the_user_wrote_into_the_text_are_refused():
    lens = lens_of("internvl")
    inputs = inputs_of("internvl", (24, 24), (24, 24))
    adapter = lens.adapter
    with pytest.raises(LensError, match="1 picture given, but the text holds the tokens of 2"):
        adapter.spans(inputs["input_ids"].tolist(), inputs, [[Picture(0, (24, 24))]], [[]])


def test_crops_that_the_processors_settings_do_not_explain_have_no_grid(monkeypatch):
    """Its settings were others when it cut the picture: a guess would put tokens in the wrong place."""
    lens = lens_of("internvl")
    inputs = inputs_of("internvl", (70, 40))
    monkeypatch.setattr(lens.processor.image_processor, "max_patches", 3)
    (spans,) = lens.adapter.spans(inputs["input_ids"].tolist(), inputs, [[Picture(0, (70, 40))]], [[]])
    assert {span.grid for span in spans if span.tile} == {None}


def test_lfm2_needs_spatial_shapes_that_fit():
    inputs = inputs_of("lfm2_vl", (70, 40))
    without = {key: value for key, value in inputs.items() if key != "spatial_shapes"}
    with pytest.raises(LensError, match=r"spatial_shapes is missing.*\n.*everything that the processor returns"):
        lens_of("lfm2_vl").prompt(inputs=without)
    with pytest.raises(
        LensError, match=r"tiles of \[9, 9.*, 8\] tokens where spatial_shapes makes grids of \[\(2, 4\)"
    ):
        lens_of("lfm2_vl").prompt(inputs={**inputs, "spatial_shapes": inputs["spatial_shapes"].flip(0)})


def test_tiles_without_any_tag_are_runs_of_unknown_layout():
    """LFM2-VL's processor may be told to write none."""
    lens = lens_of("lfm2_vl")
    slot = lens.adapter.image_slot
    given = lens.processor(
        text=f"{slot}why?", images=[[picture(70, 40)]], use_image_special_tokens=False, return_tensors="pt"
    )
    prompt = lens.prompt(inputs=given)
    assert [(span.kind, span.image, span.grid) for span in prompt.spans[0]] == [("image", 0, None)]
    with pytest.raises(LensError, match="layout of these 62 visual tokens is not known"):
        prompt.patch_at(1, 1)


@pytest.mark.parametrize("name", ["idefics3", "smolvlm"])
def test_a_picture_that_is_not_split_is_one_tile(name, monkeypatch):
    lens = lens_of(name)
    monkeypatch.setattr(lens.processor.image_processor, "do_image_splitting", False)
    (span,) = [span for span in lens.prompt("why?", images=picture(90, 40)).spans[0] if span.kind == "image"]
    assert (span.tile, span.grid, span.region) == (0, (3, 3), (0, 0, 90, 40))


def test_lfm2_may_leave_the_thumbnail_out(monkeypatch):
    """Tile 0 is then missing, and the crops keep their numbers."""
    lens = lens_of("lfm2_vl")
    monkeypatch.setattr(lens.processor.image_processor, "use_thumbnail", False)
    spans = [span for span in lens.prompt("why?", images=picture(60, 40)).spans[0] if span.kind == "image"]
    assert [(span.tile, span.region[:2]) for span in spans] == [
        (row * 3 + column + 1, (column * 20, row * 20)) for row in range(2) for column in range(3)
    ]


def test_llama4_may_fill_its_largest_canvas(monkeypatch):
    """The picture is then enlarged as far as it goes, and only the rest is padding."""
    lens = lens_of("llama4")
    monkeypatch.setattr(lens.processor.image_processor, "resize_to_max_canvas", True)
    prompt = lens.prompt("why?", images=spelling(20, 24))
    crops = [span.region for span in prompt.spans[0] if span.tile]
    assert max(box.x1 for box in crops) == pytest.approx(20)
    assert max(box.y1 for box in crops) > 24
    check_spelling("llama4", prompt, [[(20, 24)]])


def test_tokens_fall_short_of_the_edge_where_whole_patches_do_not_fill_a_tile():
    """26 pixels are six patches of four, three tokens of eight, and a rest that the model does not see."""
    lens = lens_of("ovis2 26")
    prompt = lens.prompt("why?", images=picture(26, 52))
    spans = [span for span in prompt.spans[0] if span.kind == "image"]
    assert [span.region for span in spans] == [(0, 0, 24, 48), (0, 0, 12, 48), (13, 0, 25, 48)]
    pixels = prompt.inputs["pixel_values"].clone().requires_grad_(True)
    with identity(vision_layers(lens.adapter.model)):
        entered = entering(lens, prompt, pixel_values=pixels)
    (slope,) = torch.autograd.grad(entered[0, list(spans[2].positions)].square().sum(), pixels)
    index, _, y, x = slope.nonzero(as_tuple=True)
    assert (set(index.tolist()), int(x.max()) + 1, int(y.max()) + 1) == ({2}, 24, 24)


def test_torchvision_is_loaded_once_and_its_transforms_work():
    from torchvision.transforms.v2 import functional

    assert load() is load()
    assert functional.resize(torch.ones(3, 8, 8), [4, 4]).shape == (3, 4, 4)


def test_lfm2_without_pixels_and_shapes_keeps_positions_and_claims_no_grid():
    """As inside `generate`, which runs the tower beforehand."""
    inputs = inputs_of("lfm2_vl", (70, 40))
    adapter, ids = lens_of("lfm2_vl").adapter, inputs["input_ids"].tolist()
    (known,), (found,) = adapter.spans(ids, inputs), adapter.spans(ids, {"input_ids": inputs["input_ids"]})
    assert [(s.kind, s.positions, s.image, s.tile) for s in found] == [
        (s.kind, s.positions, s.image, s.tile) for s in known
    ]
    assert {(span.grid, span.region) for span in found} == {(None, None)}
