"""The self-check of an adapter's grid: every right adapter passes on its real processor, planted errors are found."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from lmm_lens import AblateHeads, Box, Lens, LensError
from lmm_lens.bundled import shapes
from lmm_lens.checks.layout import Misplaced, misplaced
from tests.support.evidence import picture
from tests.support.families import EVERY, lens_of

WITHOUT_GRID = ["blip-2", "instructblip", "idefics2", "mllama"]  # queries, or keys outside of the sequence
BEYOND = ["step3p7", "unlimited_ocr", "got_ocr2", "pp_chart2table", "emu3", "chameleon", "gemma4_unified"]
"""Whose tokens see more than their box through convolutions or a codebook, or that have no tower to switch off.

Their boxes are shown in tests/adapters/test_one_run.py and test_cropped.py, where convolutions look at their cell."""
WITH_GRID = [name for name in EVERY if name not in (*WITHOUT_GRID, *BEYOND)]
BY_REGION = [name for name in WITH_GRID if name != "molmo2"]  # whose boxes do not follow from the region alone
SIZES = [(84, 84), (90, 60), (60, 90)]
TILED = ["internvl", "aya_vision", "llama4", "idefics3", "ovis2", "lfm2_vl"]
NOT_SQUARE = ["qwen2_vl", "qwen3_vl", "glm4v", "pixtral", "mistral3", "gemma4", "paddleocr_vl"]


def wrong(name, of_spans):
    """A lens on the family's model whose adapter says something else of each span of a picture."""
    right = lens_of(name)

    class Wrong(type(right.adapter)):
        def images(self, row, found):
            return of_spans(super().images(row, found))

    return Lens(right.model, right.processor, adapter=Wrong(right.model, right.processor))


def of_pictures(change):
    return lambda spans: [change(span) if span.kind == "image" else span for span in spans]


def transposed(span):
    rows, columns = span.grid
    return replace(span, grid=(columns, rows))


def one_column_off(span):
    x0, y0, x1, y1 = span.region
    width = (x1 - x0) / span.grid[1]
    return replace(span, region=Box(x0 + width, y0, x1 + width, y1))


def crops_swapped(spans):
    regions = {span.tile: span.region for span in spans if span.kind == "image"}
    regions[1], regions[2] = regions[2], regions[1]
    return [replace(span, region=regions[span.tile]) if span.kind == "image" else span for span in spans]


class WholePicture(type(Lens.demo().adapter)):
    """As notebook 6: right for square pictures, for others not, as the processor crops them."""

    def images(self, row, found):
        return [
            replace(span, region=Box(0, 0, *row.size(index))) for index, span in enumerate(super().images(row, found))
        ]


def whole_picture():
    model, processor = shapes.load()
    return Lens(model, processor, adapter=WholePicture(model, processor))


def hooks_of(model):
    """This library's; transformers leaves some of its own to collect hidden states."""
    hooks = [h for m in model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    return [hook for hook in hooks if "lmm_lens" in str(getattr(hook, "__module__", ""))]


# ---------------------------------------------------------------------- right adapters


def test_families_without_a_grid_are_those_that_are_left_out():
    assert sorted(name for name in EVERY if not lens_of(name).adapter.has_grid) == sorted(WITHOUT_GRID)


@pytest.mark.parametrize("name", WITH_GRID)
def test_a_right_adapter_misplaces_no_token_of_a_square_a_wide_or_a_tall_picture(name):
    lens = lens_of(name)
    assert [misplaced(lens, size) for size in SIZES] == [()] * 3
    assert hooks_of(lens.model) == []


def test_of_the_bundled_model_nothing_is_misplaced_and_it_answers_as_before(lens):
    example = shapes.examples(1, seed=3)[0]
    prompt = lens.prompt(example.question, images=example.image)
    before = lens.run(prompt).logits
    assert [misplaced(lens, size) for size in [(48, 48), (90, 60), (60, 90)]] == [()] * 3
    assert torch.equal(lens.run(prompt).logits, before)


# ---------------------------------------------------------------------- wrong ones


def test_a_region_that_is_wrong_for_wide_and_tall_pictures_is_found_there_alone():
    lens = whole_picture()
    assert misplaced(lens, (48, 48)) == misplaced(lens, (96, 96)) == ()
    for size in [(90, 60), (60, 90)]:  # cells are said to be 15 long from 0 on, and are 10 long from 15 on
        assert len(misplaced(lens, size)) == 36


def test_what_is_found_says_where_the_pixels_are_really_seen():
    """Of 90 x 60 the processor shows 15 to 75, in columns of 10. The middles of the columns as they are said to be are
    painted from 4, 19, 34, 49, 64 and 79 on, 7 pixels each: the first and the last are cropped away, and the others
    end or begin one pixel behind a border."""
    lens = whole_picture()
    found = misplaced(lens, (90, 60))
    row = range(found[0].position, found[0].position + 6)
    columns = [(), (0, 1), (1, 2), (3, 4), (4, 5), ()]
    for each, column, seen in zip(found, range(6), columns, strict=False):
        box = Box(15 * column, 0, 15 * column + 15, 10)
        assert each == Misplaced(row[column], box, tuple(row[at] for at in seen))


def test_a_sample_finds_of_each_crop_what_all_find_there():
    lens = whole_picture()
    drawn = misplaced(lens, (90, 60), sample=5)
    assert len(drawn) == 5
    assert set(drawn) < set(misplaced(lens, (90, 60)))
    assert misplaced(lens, (90, 60), sample=5) == drawn
    assert misplaced(lens, (48, 48), sample=5) == ()
    swapped = wrong("internvl", crops_swapped)
    assert misplaced(swapped, (90, 60), sample=1)
    with pytest.raises(LensError, match="sample is how many tokens of each crop are painted, at least 1, given 0"):
        misplaced(lens, (90, 60), sample=0)


@pytest.mark.parametrize("name", NOT_SQUARE)
def test_rows_and_columns_swapped_are_found_where_they_differ(name):
    lens = wrong(name, of_pictures(transposed))
    assert misplaced(lens, (84, 84)) == ()
    assert misplaced(lens, (90, 60))
    assert misplaced(lens, (60, 90))


@pytest.mark.parametrize("name", BY_REGION)
def test_one_column_off_is_found_in_every_family(name):
    assert misplaced(wrong(name, of_pictures(one_column_off)), (90, 60))


@pytest.mark.parametrize("name", TILED)
def test_crops_in_the_wrong_order_are_found(name):
    lens = wrong(name, crops_swapped)
    found = {each.position for each in misplaced(lens, (90, 60))}
    crops = [span for span in lens.prompt("?", images=picture(90, 60)).spans[0] if span.tile in (1, 2)]
    assert found == {position for span in crops if span.kind == "image" for position in span.positions}


def test_a_token_said_to_see_padding_that_sees_the_picture_is_found():
    beyond = lambda span: replace(span, region=Box(0, 0, 180, 60))  # noqa: E731  (of 90 x 60: half of it padding)
    lens = wrong("paligemma", of_pictures(beyond))
    found = misplaced(lens, (90, 60))
    outside = {each.position for each in found if each.box.x0 >= 90}
    (span,) = lens.prompt("?", images=picture(90, 60)).spans[0]
    assert outside == {position for position in span.positions if span.cell(position)[1] >= 2}
    assert all(each.seen_by == () for each in found if each.position in outside)


# ---------------------------------------------------------------------- refusals


def test_a_family_without_a_grid_is_refused():
    for name in WITHOUT_GRID:
        with pytest.raises(LensError, match=r"knows no grid \(has_grid\), so there is none to check"):
            misplaced(lens_of(name))


def test_a_lens_without_a_processor_is_refused(lens):
    with pytest.raises(LensError, match="needs a lens with its processor"):
        misplaced(Lens(lens.model))


def test_another_backend_is_refused(lens):
    with pytest.raises(LensError, match="needs backend=\"native\", this lens has 'nnsight'"):
        misplaced(Lens.demo(backend="nnsight"))


def test_inside_apply_it_is_refused(lens):
    prompt = lens.prompt("what color is the cross ?", images=picture(48, 48))
    with lens.apply(AblateHeads([(0, 1)])):
        lens.run(prompt)
        with pytest.raises(LensError, match=r"call it outside of `with lens\.apply"):
            misplaced(lens)


@pytest.mark.parametrize("size", [(0, 60), (60,)])
def test_a_size_that_is_none_is_refused(lens, size):
    with pytest.raises(LensError, match=r"size is \(width, height\) in pixels, each at least 1"):
        misplaced(lens, size)


def test_a_picture_whose_patches_are_too_small_is_refused_with_a_size_that_is_not(lens):
    with pytest.raises(LensError, match=r"is 4 pixels, too small .*\n.* as size=\(48, 48\)"):
        misplaced(lens, (24, 24))
    assert misplaced(lens, (48, 48)) == ()


def test_a_tower_without_a_list_of_layers_is_refused():
    model, processor = shapes.load()
    encoder = model.model.vision_tower.encoder
    encoder.layers = nn.Sequential(*encoder.layers)
    with pytest.raises(LensError, match=r"no layers were found in the vision tower of LlavaForConditionalGeneration"):
        misplaced(Lens(model, processor), (48, 48))
    assert hooks_of(model) == []


class Mixing(nn.Module):
    """Patches that hear of each other behind the tower."""

    def __init__(self, projector):
        super().__init__()
        self.projector = projector

    def forward(self, x):
        x = self.projector(x)
        return x + x.mean(1, keepdim=True)


def test_a_model_that_mixes_patches_elsewhere_is_refused_and_nothing_is_left_on_it():
    model, processor = shapes.load()
    model.model.multi_modal_projector = Mixing(model.model.multi_modal_projector)
    with pytest.raises(LensError, match=r"a dot in a picture moves 36 of 36 visual tokens .*\n  expected 4 at most"):
        misplaced(Lens(model, processor), (48, 48))
    assert hooks_of(model) == []


def test_an_adapter_that_says_the_picture_is_nowhere_is_refused():
    away = lambda span: replace(span, region=Box(900, 900, 990, 990))  # noqa: E731
    with pytest.raises(LensError, match=r"no visual token sees any of a picture of \(90, 60\)"):
        misplaced(wrong("paligemma", of_pictures(away)), (90, 60))
