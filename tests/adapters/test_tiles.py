"""Families that cut pictures into tiles: spans against the processor's bookkeeping, grids against the gradient of the
vision tower, regions against pictures whose colours spell coordinates and against marks painted into them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmm_lens import AblateHeads, Lens
from lmm_lens.prompts.spans import Box
from tests.support.evidence import check_bookkeeping, check_it_runs, identity, picture
from tests.support.families import lens_of
from tests.support.families.tile_evidence import check_spelling, entering, spelling, tiles_of, vision_layers
from tests.support.families.tiled import NAMES, TILE, TOKEN

pytestmark = pytest.mark.parametrize("name", list(NAMES))
sides = st.integers(16, 160)
batches = st.lists(st.lists(st.tuples(sides, sides), max_size=2), min_size=1, max_size=3).filter(any)


def asked(name, pictures, side="left"):
    """A batch: per row some pictures, each with a word before it, and a question."""
    lens = lens_of(name)
    lens.processor.tokenizer.padding_side = side
    texts = ["".join(f"a {lens.adapter.image_slot}" for _ in row) + "why?" for row in pictures]
    return lens.prompt(texts, images=pictures)


def visual(prompt, row=None):
    """Its spans of patches, in the order of the text."""
    rows = prompt.spans if row is None else [prompt.spans[row]]
    return [span for spans in rows for span in spans if span.kind != "marker"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_of_pictures_of_any_size_is_laid_out_and_runs(name, side):
    """Two pictures, none, one of a single tile; the tags between and around the tiles are markers, nothing else is."""
    prompt = asked(name, [[picture(70, 40), picture(30, 50)], [], [picture(24, 24)]], side)
    lens = lens_of(name)
    check_bookkeeping(lens, prompt, lens.adapter.image_token_id)
    check_it_runs(lens, prompt)
    assert [{span.image for span in spans} for spans in prompt.spans] == [{0, 1}, set(), {0}]
    for row, n_pictures in enumerate([2, 0, 1]):
        spans = visual(prompt, row)
        for image in range(n_pictures):
            own = sorted((span for span in spans if span.image == image), key=lambda span: span.tile)
            assert [span.tile for span in own] == list(range(len(own)))
        around = [prompt.tokens[row][p] for p in prompt.mask("marker")[row].nonzero().flatten().tolist()]
        kept = [t for t, text in zip(prompt.tokens[row], prompt.mask("text")[row], strict=True) if text]
        assert "".join(kept).replace("␣", "") == "a" * n_pictures + "why?"
        assert bool(around) == bool(n_pictures)
    assert not prompt.mask("marker")[1].any()
    assert len(visual(prompt)) == len(tiles_of(name, prompt))


@settings(max_examples=12, deadline=None)
@given(sizes=batches)
def test_every_token_lies_where_its_pixels_come_from(name, sizes):
    """The colours of a picture spell coordinates, so the processed pixels of a token tell where they come from."""
    prompt = asked(name, [[spelling(*size) for size in row] for row in sizes])
    check_bookkeeping(lens_of(name), prompt, lens_of(name).adapter.image_token_id)
    check_spelling(name, prompt, sizes)


@settings(max_examples=25, deadline=None)
@given(sizes=batches)
def test_the_crops_tile_the_picture_without_gap_or_overlap(name, sizes):
    prompt = asked(name, [[picture(*size) for size in row] for row in sizes])
    for row, row_sizes in enumerate(sizes):
        for image, (width, height) in enumerate(row_sizes):
            own = [span for span in visual(prompt, row) if span.image == image]
            crops = [span.region for span in own if span.tile or len(own) == 1]
            bound = Box(*(f(edge) for f, edge in zip((min, min, max, max), zip(*crops, strict=True), strict=True)))
            area = sum((box.x1 - box.x0) * (box.y1 - box.y0) for box in crops)
            assert area == pytest.approx((bound.x1 - bound.x0) * (bound.y1 - bound.y0))
            assert bound[:2] == (0, 0)
            assert not any(
                min(a.x1, b.x1) - max(a.x0, b.x0) > 1e-6 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1e-6
                for i, a in enumerate(crops)
                for b in crops[:i]
            )
            if name == "llama4":  # keeps proportions, the rest is padding
                assert bound.x1 >= width - 1e-6
                assert bound.y1 >= height - 1e-6
            else:
                assert bound[2:] == pytest.approx((width, height))
            thumbnails = [span.region for span in own if not span.tile]
            assert len(thumbnails) == 1
            assert thumbnails[0] == (crops[0] if len(own) == 1 else pytest.approx((0, 0, width, height)))


def test_a_tokens_grid_cell_is_where_its_gradient_lies(name):
    """Across the whole model: what enters the decoder at a position depends on these pixels of this tile alone."""
    lens = lens_of(name)
    prompt = asked(name, [[picture(70, 40)]])
    pixels = prompt.inputs["pixel_values"].clone().requires_grad_(True)
    with identity(vision_layers(lens.adapter.model)):
        entered = entering(lens, prompt, pixel_values=pixels)
    for tile, span in enumerate(visual(prompt)):
        for position in span.positions:
            (slope,) = torch.autograd.grad(entered[0, position].square().sum(), pixels, retain_graph=True)
            found = [one.abs().sum(0) for one in tiles_of(name, prompt, slope)]
            assert [i for i, one in enumerate(found) if one.any()] == [tile]
            y, x = found[tile].nonzero(as_tuple=True)
            row, column = span.cell(position)
            assert (int(x.min()), int(x.max()) + 1) == (column * TOKEN, (column + 1) * TOKEN)
            assert (int(y.min()), int(y.max()) + 1) == (row * TOKEN, (row + 1) * TOKEN)


@pytest.mark.parametrize(("size", "mark"), [((70, 40), (40, 6, 60, 24)), ((30, 90), (4, 50, 14, 70))])
def test_a_mark_changes_the_tokens_whose_boxes_it_meets_and_no_others(name, size, mark):
    """Allowing for the resampling, which reaches three pixels, of the picture or of the tile, whichever are larger."""
    lens = lens_of(name)
    clean, marked = asked(name, [[picture(*size)]]), asked(name, [[picture(*size, mark)]])
    with identity(vision_layers(lens.adapter.model)), torch.no_grad():
        moved = (entering(lens, clean) - entering(lens, marked))[0].abs().amax(-1) > 1e-6
    assert not moved[~clean.mask("visual")[0]].any()
    for span in visual(clean):
        inner = span_pixel(span)
        reach = 3 * max(1, *inner)
        x0, y0, x1, y1 = mark
        near = set(span.inside(Box(x0 - reach, y0 - reach, x1 + reach, y1 + reach)))
        assert {p for p in span.positions if moved[p]} <= near
        if x1 - x0 > 2 * inner[0] and y1 - y0 > 2 * inner[1]:
            sure = set(span.inside(Box(x0 + inner[0], y0 + inner[1], x1 - inner[0], y1 - inner[1])))
            assert sure <= {p for p in span.positions if moved[p]}
    assert {clean.patch_at(x, y) for x, y in [(mark[0] + 5, mark[1] + 9)]} <= set(moved.nonzero().flatten().tolist())


def span_pixel(span):
    """Width and height of a processed pixel in pixels of the picture."""
    rows, columns = span.grid
    region = span.region
    return (region.x1 - region.x0) / columns / TOKEN, (region.y1 - region.y0) / rows / TOKEN


def test_the_finest_token_at_a_pixel_is_a_crops(name):
    prompt = asked(name, [[picture(70, 40)]])
    for x, y in [(1, 1), (69, 1), (1, 39), (69, 39), (35, 20)]:
        position = prompt.patch_at(x, y)
        (span,) = [span for span in visual(prompt) if position in span.positions]
        assert span.tile
        box = prompt.box(position)
        assert box.x0 <= x < box.x1
        assert box.y0 <= y < box.y1


def test_of_tensors_alone_boxes_are_in_pixels_of_the_processed_picture(name):
    """Where only the size of the picture would tell in how many rows the crops lie, their layout is not known."""
    full = asked(name, [[picture(70, 40), picture(24, 24)]])
    prompt = lens_of(name).prompt(inputs=full.inputs)
    known, found = visual(full), visual(prompt)
    assert [(s.positions, s.image, s.tile) for s in found] == [(s.positions, s.image, s.tile) for s in known]
    assert torch.equal(prompt.mask("marker"), full.mask("marker"))
    whole, *crops = sorted((span for span in found if span.image == 0), key=lambda span: span.tile)
    if name in ("internvl", "aya_vision", "cohere2_vision"):
        assert {(crop.grid, crop.region) for crop in crops} == {(None, None)}
        assert whole.region == (0, 0, TILE, TILE)
        return
    assert whole.region == (0, 0, max(crop.region.x1 for crop in crops), max(crop.region.y1 for crop in crops))
    for crop, before in zip(crops, sorted(visual(full), key=lambda span: (span.image, span.tile))[1:], strict=False):
        box, scale = crop.region, span_pixel(before)
        assert crop.grid == before.grid
        assert box.x1 - box.x0 == box.y1 - box.y0 == TILE
        assert (box.x0 * scale[0], box.y0 * scale[1]) == pytest.approx(before.region[:2])


def test_without_a_processor_the_model_and_its_masks_still_work(name):
    """Tags have no names then. InternVL needs none, a run being a picture; Ovis 2's config names the separators."""
    full = asked(name, [[picture(24, 24)]])
    lens = Lens(lens_of(name).adapter.model)
    prompt = lens.prompt(inputs=full.inputs)
    check_bookkeeping(lens, prompt, lens.adapter.image_token_id)
    check_it_runs(lens, prompt)
    assert any(span.grid for span in visual(prompt)) == (name in ("internvl", "ovis2"))
    assert prompt.mask("marker").any() == (name == "ovis2")


def test_the_models_own_generate_is_edited_as_the_lenss(name):
    """It runs the tower beforehand and hands over features without pixels; spans are the same, from the tags alone."""
    lens = lens_of(name)
    prompt = asked(name, [[picture(70, 40)], [picture(24, 24)]])
    edits = [AblateHeads([(1, 0), (1, 1)], rows="after_image")]
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with lens.apply(*edits):
        inside = lens.adapter.model.generate(**prompt.inputs, **options)
    assert torch.equal(inside[:, prompt.n_tokens :], lens.generate(prompt, edits, max_new_tokens=3).tokens)
