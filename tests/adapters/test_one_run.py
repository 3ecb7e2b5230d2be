"""Families that write a picture as one run of tokens, each in its own way, with their real processors."""

import pytest

from tests.support.evidence import check_bookkeeping, check_it_runs, picture
from tests.support.families import lens_of
from tests.support.families.grid_thw_kin import KIN
from tests.support.families.one_run import NAMES
from tests.support.spelled import extents


@pytest.mark.parametrize("name", [*NAMES, *KIN])
def test_the_box_of_every_token_is_what_its_gradient_says(name):
    lens = lens_of(name)
    sizes, slot = [(96, 60), (56, 84)], lens.adapter.standing("image")
    n_checked = 0
    for prompt, position, found in extents(lens, f"Is {slot} as {slot}?", sizes):
        span = next(span for span in prompt.spans[0] if position in span.positions)
        (width, height), box = sizes[span.image], prompt.box(position)
        assert prompt.patch_at((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2, image=span.image) == position
        if found is not None:
            said = (box.x0 / width, box.y0 / height, box.x1 / width, box.y1 / height)
            assert found == pytest.approx(said, abs=0.03)
            n_checked += 1
    assert n_checked > 4


@pytest.mark.parametrize("name", NAMES)
def test_every_picture_has_its_own_run(name):
    lens = lens_of(name)
    slot = lens.adapter.standing("image")
    prompt = lens.prompt(f"{slot} a {slot}{slot} b", images=[picture(56, 84), picture(100, 60), picture(60, 60)])
    check_bookkeeping(lens, prompt, lens.adapter.image_token_id)
    check_it_runs(lens, prompt)
    assert [span.image for span in prompt.spans[0] if span.kind == "image"] == [0, 1, 2]


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_a_batch_have_their_own_pictures(name):
    lens = lens_of(name)
    slot = lens.adapter.standing("image")
    texts, rows = (
        [f"{slot} two {slot}", f"longer words {slot}"],
        [[picture(56, 84), picture(90, 40)], [picture(84, 84)]],
    )
    prompt = lens.prompt(texts, images=rows)
    check_it_runs(lens, prompt)
    for row, (text, images) in enumerate(zip(texts, rows, strict=True)):
        alone = lens.prompt(text, images=images)
        pad = int(prompt.mask("pad")[row].sum())
        moved = [(s.kind, tuple(p - pad for p in s.positions), s.image, s.grid, s.region) for s in prompt.spans[row]]
        assert moved == [(s.kind, s.positions, s.image, s.grid, s.region) for s in alone.spans[0]]
