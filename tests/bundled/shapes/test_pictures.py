import numpy as np
import pytest

from lmm_lens.bundled import shapes
from lmm_lens.bundled.shapes.render import render
from lmm_lens.bundled.shapes.scenes import COLORS, SHAPES, cell_box
from lmm_lens.bundled.worlds import cell_patches, place_name

# an independent palette: which channels are strong
STRONG = {"red": "r", "green": "g", "blue": "b", "yellow": "rg", "purple": "rb", "cyan": "gb"}


def color_named(rgb):
    """The colour of a pixel by its strong channels, relative to the brightest."""
    strong = "".join(name for name, value in zip("rgb", rgb, strict=True) if value > 0.6 * max(rgb))
    return {channels: color for color, channels in STRONG.items()}.get(strong)


def center_of(image, box):
    x0, y0, x1, y1 = box
    return np.asarray(image, float)[(y0 + y1) // 2 - 1 : (y0 + y1) // 2 + 1, (x0 + x1) // 2 - 1 : (x0 + x1) // 2 + 1]


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("cell", range(9))
def test_a_thing_shows_its_color_in_its_own_cell(color, cell):
    for seed, shape in enumerate(SHAPES):
        scene = shapes.Scene((shapes.Thing(cell, color, shape),))
        image = shapes.picture(scene, seed, noise=0, contrast=1)
        (box,) = shapes.boxes(scene).values()
        assert color_named(center_of(image, box).mean((0, 1))) == color


def test_an_empty_cell_is_left_to_the_background():
    scene = shapes.Scene((shapes.Thing(4, "red", "square"),))
    with_thing = np.asarray(shapes.picture(scene, 3, noise=0, contrast=1), int)
    without = np.asarray(shapes.picture(shapes.Scene(()), 3, noise=0, contrast=1), int)
    x0, y0, x1, y1 = cell_box(4)
    difference = np.abs(with_thing - without)
    assert difference[y0:y1, x0:x1].max() > 100
    difference[y0:y1, x0:x1] = 0
    assert not difference.any()


def test_boxes_are_the_cells_row_by_row():
    scene = shapes.Scene((shapes.Thing(1, "red", "star"), shapes.Thing(6, "blue", "cross")))
    assert list(shapes.boxes(scene).values()) == [(16, 0, 32, 16), (0, 32, 16, 48)]
    assert (place_name(1), place_name(6)) == ("top center", "bottom left")


def test_the_patches_of_a_cell_tile_its_box():
    for cell in range(9):
        x0, y0, x1, y1 = cell_box(cell)
        inside = [patch for patch in range(36) if x0 <= 8 * (patch % 6) + 4 < x1 and y0 <= 8 * (patch // 6) + 4 < y1]
        assert sorted(cell_patches(cell)) == inside
        assert cell_patches(cell)[0] == inside[0]


def test_sinks_are_planted_on_the_first_and_last_empty_cell():
    scene = shapes.Scene((shapes.Thing(0, "red", "star"), shapes.Thing(8, "blue", "cross")))
    assert shapes.sink_patches(scene) == (2, 26)  # cells 1 and 7
    full = shapes.Scene(tuple(shapes.Thing(cell, "red", "star") for cell in range(9)))
    assert shapes.sink_patches(full) == ()


def test_a_picture_varies_with_its_seed_and_only_with_it():
    scene = shapes.Scene((shapes.Thing(2, "green", "circle"),))
    assert shapes.picture(scene, 1).tobytes() == shapes.picture(scene, 1).tobytes()
    assert shapes.picture(scene, 1).tobytes() != shapes.picture(scene, 2).tobytes()
    assert shapes.blank(1).tobytes() == shapes.picture(shapes.Scene(()), 1).tobytes()


def test_low_contrast_keeps_everything_but_the_contrast():
    scene = shapes.Scene((shapes.Thing(2, "green", "circle"),))
    strong, faint, none = (np.asarray(shapes.picture(scene, 1, noise=0, contrast=c), float) for c in (1.0, 0.5, 0.0))
    np.testing.assert_allclose(faint, (strong + none) / 2, atol=1.01)  # rounding


def test_drawing_many_scenes_at_once_puts_each_in_its_own_picture():
    scenes = [shapes.Scene((shapes.Thing(cell, "cyan", "square"),)) for cell in (0, 4, 8)] + [shapes.Scene(())]
    images = render(scenes, np.random.default_rng(0), noise=0, contrast=1)
    assert images.shape == (4, 48, 48, 3)
    assert images.dtype == np.uint8
    found = [
        [cell for cell in range(9) if color_named(center_of(image, cell_box(cell)).mean((0, 1))) == "cyan"]
        for image in images
    ]
    assert found[:3] == [[0], [4], [8]]


def test_things_in_one_cell_or_out_of_order_are_refused():
    with pytest.raises(ValueError, match=r"one thing a cell, in reading order; got cells \[3, 3\]"):
        shapes.Scene((shapes.Thing(3, "red", "star"), shapes.Thing(3, "blue", "cross")))
