"""Maps, components, spatial entropy and elbow, against flood fills and loops, and against answers worked by hand."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from lmm_lens.core import spatial
from tests.support.slow_maps import farthest_from_the_chord, flood_fill, slow_blur, slow_entropy


def drawn(text: str) -> Tensor:
    """A mask from a drawing: # inside, . outside."""
    return torch.tensor([[character == "#" for character in line] for line in text.split()])


def groups(labels: Tensor) -> list[set[tuple[int, int]]]:
    numbers = sorted(set(labels.flatten().tolist()) - {0})
    return [set(map(tuple, (labels == number).nonzero().tolist())) for number in numbers]


def random_maps(*shape: int, power: int = 6, seed: int = 0) -> Tensor:
    maps = torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** power
    return maps / maps.sum((-2, -1), keepdim=True)


# ---------------------------------------------------------------------- components


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (6, 6), (24, 24), (5, 13)])
@pytest.mark.parametrize("density", [0.1, 0.35, 0.6, 0.9])
def test_components_are_those_of_a_flood_fill(shape, density):
    mask = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0)) < density
    labels = spatial.components(mask)
    assert labels.shape == mask.shape
    for i, j in product(range(2), range(3)):
        given, expected = groups(labels[i, j]), flood_fill(mask[i, j].tolist())
        assert sorted(map(sorted, given)) == sorted(map(sorted, expected))
        assert torch.equal(labels[i, j] > 0, mask[i, j])


@pytest.mark.parametrize(
    ("picture", "n"),
    [
        ("... ... ...", 0),
        ("### ### ###", 1),
        ("#.. .#. ..#", 1),  # corners touch
        ("#.# ... #.#", 4),
        ("#.#.# .#.#. #.#.#", 1),  # a checkerboard hangs together by its corners
        ("#.### #...# ###.#", 2),
        ("##..## ......", 2),  # edges do not wrap around
        ("####### #.....# #.###.# #.#.#.# #.#...# #.##### #...... #######", 1),  # a spiral
    ],
)
def test_components_of_drawings(picture, n):
    assert len(groups(spatial.components(drawn(picture)))) == n


def test_a_component_is_numbered_by_its_last_cell():
    assert spatial.components(drawn("##.# .#.#")).tolist() == [[6, 6, 0, 8], [0, 6, 0, 8]]


def test_masses_of_components_by_hand():
    maps = torch.tensor([[1.0, 2.0, 0.0, 4.0]])
    masses = spatial.component_masses(maps, spatial.components(maps > 1))
    assert masses.tolist() == [1.0, 0.0, 2.0, 0.0, 4.0]  # in none, and at the numbers 2 and 4


# ---------------------------------------------------------------------- spatial entropy


@pytest.mark.parametrize("shape", [(6, 6), (24, 24), (3, 11)])
def test_spatial_entropy_equals_a_flood_fill_and_a_loop(shape):
    maps = random_maps(4, 5, *shape)
    given = spatial.spatial_entropy(maps)
    assert given.shape == (4, 5)
    for i, j in product(range(4), range(5)):
        assert float(given[i, j]) == pytest.approx(slow_entropy(maps[i, j].tolist()), abs=1e-9)
    assert len(set(given.flatten().tolist())) > 10  # not all alike


def test_one_place_has_no_entropy():
    weights = torch.zeros(4, 4)
    weights[1:3, 1:3] = torch.tensor([[0.1, 0.2], [0.3, 0.05]])
    assert float(spatial.spatial_entropy(weights)) == pytest.approx(0, abs=1e-6)


def test_two_equal_places_have_entropy_ln_2():
    weights = torch.zeros(6, 6, dtype=torch.float64)
    weights[0, 0] = weights[5, 5] = 0.4
    assert float(spatial.spatial_entropy(weights)) == pytest.approx(math.log(2), abs=1e-12)


def test_three_places_of_one_one_and_two_parts_by_hand():
    # mean .1, so .2, .2 and .3 are .1, .1 and .2 above it
    weights = torch.tensor([[0.2, 0.0, 0.2, 0.0, 0.3, 0.0, 0.0]], dtype=torch.float64)
    assert float(spatial.spatial_entropy(weights)) == pytest.approx(1.5 * math.log(2), abs=1e-12)


def test_what_is_above_the_mean_but_under_the_threshold_counts_in_the_total_alone():
    # mean .1, excess .3, .1 and .05; at a threshold of .07 the last is in no place
    weights = torch.tensor([[0.4, 0.0, 0.2, 0.0, 0.15, 0.0, 0.0, 0.05]], dtype=torch.float64)
    by_hand = -(0.3 / 0.45 * math.log(0.3 / 0.45) + 0.1 / 0.45 * math.log(0.1 / 0.45))
    assert float(spatial.spatial_entropy(weights, threshold=0.07)) == pytest.approx(by_hand, abs=1e-12)
    assert float(spatial.spatial_entropy(weights, threshold=0.35)) == math.inf


def test_a_map_that_is_even_or_too_faint_has_no_place_rather_than_one():
    for maps in (torch.zeros(6, 6), torch.full((6, 6), 1 / 36), torch.ones(6, 6), random_maps(6, 6) * 1e-4):
        assert float(spatial.spatial_entropy(maps)) == math.inf


def test_a_broken_map_has_no_entropy():
    maps = random_maps(3, 6, 6)
    maps[1, 2, 2] = torch.nan
    assert spatial.spatial_entropy(maps).isnan().tolist() == [False, True, False]


def test_cells_that_only_pad_a_smaller_grid_change_nothing():
    small, wide = random_maps(3, 4, 5), random_maps(3, 6, 3, seed=1)
    padded = torch.zeros(2, 3, 6, 5, dtype=torch.float64)
    padded[0, :, :4, :], padded[1, :, :, :3] = small, wide
    given = spatial.spatial_entropy(padded, torch.tensor([[20], [18]]))
    expected = torch.stack([spatial.spatial_entropy(small), spatial.spatial_entropy(wide)])
    torch.testing.assert_close(given, expected)


def test_what_lies_above_the_mean_by_hand():
    maps = torch.tensor([[4.0, 0.0, 2.0, 2.0]])
    assert spatial.excess(maps).tolist() == [[2.0, 0.0, 0.0, 0.0]]
    assert spatial.excess(maps, torch.tensor(8)).tolist() == [[3.0, 0.0, 1.0, 1.0]]


# ---------------------------------------------------------------------- patterns as maps


def test_a_map_has_the_attention_of_its_cells_keys():
    pattern = random_maps(2, 3, 4, 9)
    cells = torch.tensor([[[2, 3, 4], [5, 6, 7]], [[8, 0, -1], [1, 3, -1]]])
    maps = spatial.as_maps(pattern, cells)
    assert maps.shape == (2, 3, 4, 2, 3)
    for b, h, r, i, j in product(range(2), range(3), range(4), range(2), range(3)):
        key = int(cells[b, i, j])
        assert float(maps[b, h, r, i, j]) == (float(pattern[b, h, r, key]) if key >= 0 else 0)
    assert spatial.at_cells(torch.arange(9).expand(2, 9) % 2 == 0, cells)[1].tolist() == [
        [True, True, False],
        [False] * 3,
    ]


# ---------------------------------------------------------------------- elbow


def test_the_elbow_of_a_curve_made_by_hand():
    # the chord is 0, 2.5, 5, 7.5, 10: the curve is 0, 1.5, 3, 4.5, 0 away from it
    assert spatial.elbow(torch.tensor([0.0, 1.0, 2.0, 3.0, 10.0])) == 3.0
    assert spatial.elbow(torch.tensor([10.0, 3.0, 0.0, 2.0, 1.0])) == 3.0  # in any order
    assert spatial.elbow(torch.tensor([0.0, 7.0, 8.0, 9.0, 10.0])) == 7.0  # above the chord too


@pytest.mark.parametrize("seed", range(5))
def test_the_elbow_is_the_point_farthest_from_the_chord(seed):
    values = torch.rand(48, generator=torch.Generator().manual_seed(seed)) ** 3
    assert spatial.elbow(values) == farthest_from_the_chord(values.tolist())


def test_the_elbow_is_a_value_and_no_index():
    # six heads that hardly look, two that do: read as an index, the elbow 6 would keep heads 6 and 7 whoever they are
    masses = torch.tensor([0.9, 0.01, 0.02, 0.03, 0.8, 0.04, 0.05, 0.06])
    assert (masses >= spatial.elbow(masses)).nonzero().flatten().tolist() == [0, 4, 7]


def test_without_an_elbow_every_value_passes():
    assert spatial.elbow(torch.tensor([0.3, 0.1, 0.2])) == pytest.approx(0.1)  # a straight line
    assert spatial.elbow(torch.full((5,), 0.25)) == 0.25
    assert spatial.elbow(torch.tensor([0.7, 0.2])) == pytest.approx(0.2)
    assert spatial.elbow(torch.tensor([0.7])) == pytest.approx(0.7)


def test_heads_that_do_not_exist_have_no_part_in_the_elbow():
    assert spatial.elbow(torch.tensor([0.0, math.nan, 1.0, 2.0, math.nan, 3.0, 10.0])) == 3.0
    assert math.isnan(spatial.elbow(torch.tensor([math.nan])))


# ---------------------------------------------------------------------- smoothing and boxes


@pytest.mark.parametrize("sigma", [0.25, 1.0, 3.0, 20.0])
def test_smoothing_equals_a_loop_over_cells(sigma):
    maps = random_maps(5, 7)
    rows = [slow_blur(row, sigma) for row in maps.tolist()]
    expected = torch.tensor([slow_blur(list(column), sigma) for column in zip(*rows, strict=True)]).T
    torch.testing.assert_close(spatial.smooth(maps, sigma), expected.double(), atol=1e-6, rtol=0)


def test_smoothing_keeps_the_total_and_an_even_map():
    maps = random_maps(4, 6, 6)
    torch.testing.assert_close(spatial.smooth(maps, 2.0).sum((-2, -1)), maps.sum((-2, -1)))
    torch.testing.assert_close(spatial.smooth(torch.ones(3, 3), 1.5), torch.ones(3, 3))
    assert spatial.smooth(maps, 0.0) is maps


def test_the_bounds_of_a_place():
    assert spatial.bounds(drawn("..... .##.. ..#.. .....")) == (1, 1, 3, 3)
    assert spatial.bounds(drawn("#")) == (0, 0, 1, 1)
    assert spatial.bounds(drawn("#.. ... ..#")) == (0, 0, 3, 3)
