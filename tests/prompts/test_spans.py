"""Pixels to tokens and back, by hand-worked answers and by round trips."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmm_lens import Box, LensError, Span
from lmm_lens.prompts.spans import runs

# 2 rows x 3 columns of 10 x 20 pixel patches at tokens 5 to 10, the left upper corner at (100, 50)
SPAN = Span("image", (5, 6, 7, 8, 9, 10), image=0, grid=(2, 3), region=Box(100, 50, 130, 90))


@pytest.mark.parametrize(
    ("position", "cell", "box"),
    [
        (5, (0, 0), (100, 50, 110, 70)),
        (7, (0, 2), (120, 50, 130, 70)),
        (8, (1, 0), (100, 70, 110, 90)),
        (10, (1, 2), (120, 70, 130, 90)),
    ],
)
def test_a_token_covers_its_cell_of_the_grid(position, cell, box):
    assert SPAN.cell(position) == cell
    assert SPAN.box(position) == box


@pytest.mark.parametrize(
    ("x", "y", "position"),
    [
        (100, 50, 5),
        (109.9, 69.9, 5),
        (110, 50, 6),
        (100, 70, 8),
        (129.9, 89.9, 10),
        (130, 60, None),
        (99.9, 60, None),
        (110, 90, None),
        (110, 49.9, None),
        (math.nan, 60, None),
    ],
)
def test_a_pixel_belongs_to_the_patch_that_holds_it_right_and_bottom_edges_excluded(x, y, position):
    assert SPAN.at(x, y) == position


@pytest.mark.parametrize(
    ("box", "positions"),
    [
        ((100, 50, 130, 90), (5, 6, 7, 8, 9, 10)),
        ((0, 0, 1000, 1000), (5, 6, 7, 8, 9, 10)),
        ((110, 50, 120, 70), (6,)),  # touching its neighbours is not overlapping them
        ((109, 69, 111, 71), (5, 6, 8, 9)),
        ((112, 55, 113, 56), (6,)),
        ((0, 0, 100, 1000), ()),
    ],
)
def test_a_box_holds_the_tokens_that_it_overlaps_with_positive_area(box, positions):
    assert SPAN.inside(Box(*box)) == positions


def test_tokens_need_not_be_neighbours_in_the_sequence():
    """A Pixtral picture has a break after each row of patches."""
    span = Span("image", (2, 3, 5, 6), image=0, grid=(2, 2), region=Box(0, 0, 20, 20))
    assert span.at(5, 15) == 5
    assert span.box(6) == (10, 10, 20, 20)


def test_a_grid_that_cannot_hold_the_tokens_is_refused():
    with pytest.raises(LensError, match=r"a grid of 2 x 4 patches cannot hold 6 visual tokens\n.*own processor"):
        Span("image", (5, 6, 7, 8, 9, 10), grid=(2, 4), region=Box(0, 0, 1, 1))


@pytest.mark.parametrize("ask", [lambda s: s.at(1, 1), lambda s: s.box(0), lambda s: s.inside(Box(0, 0, 1, 1))])
def test_without_a_layout_pixels_are_not_mapped(ask):
    with pytest.raises(LensError, match=r"layout of these 2 visual tokens is not known.*\n.*no adapter with a grid"):
        ask(Span("image", (0, 1)))


def test_runs_are_split_at_gaps():
    assert runs([]) == []
    assert runs([4]) == [(4,)]
    assert runs([0, 1, 3, 4, 5, 9]) == [(0, 1), (3, 4, 5), (9,)]


# ---------------------------------------------------------------------- properties

sizes = st.integers(1, 12)
regions = st.builds(
    lambda x, y, width, height: Box(x, y, x + width, y + height),
    *[st.integers(-500, 500)] * 2,
    *[st.integers(1, 2000)] * 2,
)


@st.composite
def spans(draw):
    rows, columns = draw(sizes), draw(sizes)
    first = draw(st.integers(0, 50))
    return Span("image", tuple(range(first, first + rows * columns)), 0, 0, (rows, columns), draw(regions))


@given(spans())
@settings(max_examples=60, deadline=None)
def test_the_middle_of_every_tokens_box_is_its_own(span):
    for position in span.positions:
        box = span.box(position)
        assert span.at((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2) == position


@given(spans(), st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True))
@settings(max_examples=200, deadline=None)
def test_a_pixel_lies_in_the_box_of_its_token(span, across, down):
    region = span.region
    x = region.x0 + across * (region.x1 - region.x0)
    y = region.y0 + down * (region.y1 - region.y0)
    position = span.at(x, y)
    if not (x < region.x1 and y < region.y1):  # by rounding, at the far edge
        assert position is None
        return
    box = span.box(position)
    assert box.x0 <= x
    assert box.y0 <= y
    assert x < box.x1
    assert y < box.y1


@given(spans())
@settings(max_examples=60, deadline=None)
def test_the_boxes_tile_the_region(span):
    boxes = [span.box(position) for position in span.positions]
    area = sum((box.x1 - box.x0) * (box.y1 - box.y0) for box in boxes)
    region = span.region
    assert area == pytest.approx((region.x1 - region.x0) * (region.y1 - region.y0))
    assert min(box.x0 for box in boxes) == region.x0
    assert max(box.y1 for box in boxes) == pytest.approx(region.y1)


@given(spans(), st.data())
@settings(max_examples=100, deadline=None)
def test_a_box_well_inside_a_patch_finds_it_alone(span, data):
    position = data.draw(st.sampled_from(span.positions))
    box = span.box(position)
    width, height = box.x1 - box.x0, box.y1 - box.y0
    inner = Box(box.x0 + 0.1 * width, box.y0 + 0.1 * height, box.x1 - 0.1 * width, box.y1 - 0.1 * height)
    assert span.inside(inner) == (position,)


@pytest.mark.parametrize(("size", "side"), [(336, 24), (48, 6), (224, 16), (384, 27), (448, 32)])
def test_whole_pixels_at_patch_edges_start_the_next_patch(size, side):
    """Rounding must not pull an edge pixel back: 14 / 336 * 24 has to be 1."""
    span = Span("image", tuple(range(side**2)), 0, 0, (side, side), Box(0, 0, size, size))
    for x in range(size):
        assert span.at(x, 0) == x * side // size


@pytest.mark.parametrize(
    ("shape", "size", "pixels"),
    [((1, 200), (200, 1), range(200)), ((32, 48), (1000, 700), [625, 875]), ((3, 7), (70, 3), range(70))],
)
def test_a_pixel_on_a_border_belongs_to_the_patch_that_begins_there(shape, size, pixels):
    """Whatever the rounding: 113/200 of 200 columns is column 112.99..."""
    span = Span("image", tuple(range(shape[0] * shape[1])), 0, 0, shape, Box(0, 0, *size))
    for x in pixels:
        box = span.box(span.at(x, 0))
        assert box.x0 <= x < box.x1


def test_a_row_on_a_border_too():
    span = Span("image", tuple(range(200)), 0, 0, (200, 1), Box(0, 0, 1, 200))
    assert [span.at(0, y) for y in range(200)] == list(range(200))


def test_neighbouring_crops_share_no_pixel():
    """13 times a 13th of 13.33... is more than that."""
    seam = 40 / 3
    regions = Box(0, 0, 9, seam), Box(0, seam, 9, 2 * seam)
    first, second = (Span("image", tuple(range(169)), 0, tile, (13, 13), box) for tile, box in enumerate(regions))
    for position in range(156, 169):
        assert second.inside(first.box(position)) == ()
    for position in range(13):
        assert first.inside(second.box(position)) == ()
