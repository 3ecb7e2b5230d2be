"""Families that show a picture whole and in crops, each in its own way, with their real processors."""

import pytest

from tests.support.evidence import check_bookkeeping, check_it_runs, picture
from tests.support.families import lens_of
from tests.support.families.cropped import NAMES
from tests.support.spelled import extents

SIZES = {"perception_lm": [(110, 60), (110, 60)], "step3p7": [(220, 150), (100, 90)]}
"""Of Perception LM all pictures of a batch have as many tiles."""


@pytest.mark.parametrize("name", NAMES)
def test_the_box_of_every_token_is_what_its_gradient_says(name):
    lens = lens_of(name)
    sizes, slot = SIZES.get(name, [(150, 90), (84, 130)]), lens.adapter.standing("image")
    tiles, n_checked = set(), 0
    for prompt, position, found in extents(lens, f"{slot} and {slot}?", sizes):
        span = next(span for span in prompt.spans[0] if position in span.positions)
        (width, height), box = sizes[span.image], span.box(position)
        assert span.at((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2) == position
        if found is not None:
            said = (box.x0 / width, box.y0 / height, box.x1 / width, box.y1 / height)
            assert found == pytest.approx(said, abs=0.03), (span.image, span.tile)
            tiles.add((span.image, span.tile))
            n_checked += 1
    assert n_checked > 4
    assert len(tiles) > 3


@pytest.mark.parametrize("name", NAMES)
def test_every_picture_has_its_own_tiles(name):
    lens = lens_of(name)
    slot, sizes = lens.adapter.standing("image"), SIZES.get(name, [(150, 90), (84, 130)])
    prompt = lens.prompt(f"{slot} a {slot} b", images=[picture(*size) for size in sizes])
    check_bookkeeping(lens, prompt, lens.adapter.image_token_id)
    check_it_runs(lens, prompt)
    found = [(span.image, span.tile) for span in prompt.spans[0] if span.kind == "image"]
    assert sorted(found) == sorted(set(found))
    assert {image for image, _ in found} == {0, 1}


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_a_batch_have_their_own_pictures(name):
    lens = lens_of(name)
    slot, (first, second) = lens.adapter.standing("image"), SIZES.get(name, [(150, 90), (84, 130)])
    texts = [f"{slot} two {slot}", f"longer words {slot}"]
    rows = [[picture(*first), picture(*second)], [picture(*first)]]
    prompt = lens.prompt(texts, images=rows)
    check_it_runs(lens, prompt)
    for row, (text, images) in enumerate(zip(texts, rows, strict=True)):
        alone = lens.prompt(text, images=images)
        pad = int(prompt.mask("pad")[row].sum())
        moved = [(s.kind, tuple(p - pad for p in s.positions), s.image, s.tile, s.grid) for s in prompt.spans[row]]
        assert moved == [(s.kind, s.positions, s.image, s.tile, s.grid) for s in alone.spans[0]]
        regions = [s.region for s in alone.spans[0] if s.kind == "image"]
        assert [s.region for s in prompt.spans[row] if s.kind == "image"] == regions
