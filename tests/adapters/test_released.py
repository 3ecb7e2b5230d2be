"""Spans and boxes with the numbers of released checkpoints, on their real processors."""

import pytest

from lmm_lens.checks.layout import misplaced
from tests.support.evidence import picture
from tests.support.released import GRIDS, RELEASED, SOURCES, SQUARES, lens_of

PICTURES = [(name, size) for name, released in RELEASED.items() for size in released.seen]


def test_every_checkpoint_says_where_its_numbers_are_from_and_one_without_a_file_has_no_owner():
    assert SOURCES.keys() == RELEASED.keys()
    assert {name for name, source in SOURCES.items() if source is None} == {n for n in RELEASED if "/" not in n}


@pytest.mark.parametrize(("name", "size"), PICTURES, ids=str)
def test_a_picture_becomes_the_grids_of_its_rule(name, size):
    prompt = lens_of(name).prompt("What is this?", images=picture(*size))
    tiles = [span for span in prompt.spans[0] if span.kind == "image"]
    assert tuple(tile.grid for tile in tiles) == RELEASED[name].seen[size]
    assert int(prompt.mask("image").sum()) == sum(rows * columns for rows, columns in RELEASED[name].seen[size])


@pytest.mark.long
@pytest.mark.parametrize(("name", "size"), PICTURES, ids=str)
def test_the_middle_of_a_box_leads_back_to_its_token_and_no_two_boxes_are_one(name, size):
    prompt = lens_of(name).prompt("What is this?", images=picture(*size))
    for tile in (span for span in prompt.spans[0] if span.kind == "image"):
        boxes = [tile.box(position) for position in tile.positions]
        for position, box in zip(tile.positions, boxes, strict=True):
            assert tile.at((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2) == position
        assert len(set(boxes)) == len(boxes)


SLOW = {"google/paligemma2-10b-pt-896", "google/gemma-3-4b-it"}
"""4,096 patches of one picture; their kin of fewer are painted, and these two families in tests/checks."""
PAINTED = {
    **dict.fromkeys(SQUARES.keys() - SLOW, (320, 320)),
    **dict.fromkeys(GRIDS, (330, 250)),
    "lightonai/LightOnOCR-2-1B": (350, 270),  # 25 columns of patches, merged by two
    **dict.fromkeys(("OpenGVLab/InternVL3-8B-hf", "HuggingFaceM4/Idefics3-8B-Llama3"), (1200, 300)),
}


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(PAINTED))
def test_the_model_sees_paint_where_the_boxes_say(name):
    assert misplaced(lens_of(name), PAINTED[name], sample=2) == ()
