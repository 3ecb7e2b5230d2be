"""Figures of a sweep, read off the artists: numbers, places, marks and colours, not looks."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex

from lmm_lens import HeadSet
from lmm_lens.effects.figures import (
    BLUE,
    GREY,
    RED,
    against_controls,
    effect_map,
    effects_by_layer,
    sorted_effects,
)
from lmm_lens.errors import ScoreError
from lmm_lens.statistics import control_test, effects_table


def effects_of(units: list[HeadSet], means: list[float], n_prompts: int = 40) -> SimpleNamespace:
    """Effects with the given means and a spread of .1, as the figures take them."""
    noise = torch.randn(n_prompts, len(units), generator=torch.Generator().manual_seed(0))
    noise = 0.1 * (noise - noise.mean(0)) / noise.std(0)
    values = torch.tensor(means) + noise
    table = effects_table(units, values)
    return SimpleNamespace(units=tuple(units), metric="log_prob", n_prompts=n_prompts, to_pandas=lambda: table)


@pytest.fixture(scope="module")
def some():
    """Of 3 layers x 4 heads six: two help, one hurts, two do nothing, one has p below .05 but not after Holm."""
    heads = [(0, 1), (0, 2), (1, 0), (1, 3), (2, 2), (2, 3)]
    return effects_of([HeadSet([head], 3, 4) for head in heads], [1.0, 0.0, 0.5, 0.0, -0.75, 0.037])


def test_the_map_shows_each_head_in_its_place_and_leaves_others_out(some):
    ax = effect_map(some)
    (image,) = ax.images
    shown = np.ma.filled(image.get_array(), np.nan)
    expected = np.full((3, 4), np.nan)
    for head, mean in {(0, 1): 1, (0, 2): 0, (1, 0): 0.5, (1, 3): 0, (2, 2): -0.75, (2, 3): 0.037}.items():
        expected[head] = mean
    np.testing.assert_allclose(shown, expected, atol=1e-6)
    assert image.get_clim() == pytest.approx((-1, 1))
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    assert "40 prompts" in ax.get_title()


def test_significant_heads_have_a_dot_in_the_map_as_large_as_their_effect(some):
    (dots,) = effect_map(some).collections[:1]
    sizes = {(int(y), int(x)): size for (x, y), size in zip(dots.get_offsets(), dots.get_sizes(), strict=True)}
    assert set(sizes) == {(0, 1), (1, 0), (2, 2)}
    effects = some.to_pandas().set_index(["layer", "head"])["effect"].abs()
    for place, size in sizes.items():
        assert size / max(sizes.values()) == pytest.approx(effects[place] / max(effects[each] for each in sizes))


def test_sorted_effects_go_down_and_have_their_intervals_and_colours(some):
    ax = sorted_effects(some)
    (dots,) = (each for each in ax.collections if isinstance(each, PathCollection))
    table = some.to_pandas()
    np.testing.assert_allclose(dots.get_offsets(), np.column_stack([range(1, 7), table["effect"]]))
    assert [to_hex(color) for color in dots.get_facecolors()] == [RED, RED, GREY, GREY, GREY, BLUE]
    lines = next(c for c in ax.collections if c is not dots)
    ends = np.array([path.vertices[:, 1] for path in lines.get_paths()])
    np.testing.assert_allclose(ends, table[["low", "high"]])
    assert [label.get_text() for label in ax.get_xticklabels()] == table["unit"].tolist()


def test_of_many_units_only_the_strongest_significant_ones_are_named():
    units = [HeadSet([(layer, head)], 10, 10) for layer in range(10) for head in range(10)]
    means = [0.0] * 100
    means[7], means[33], means[91] = 2.0, 1.99, -1.0
    ax = sorted_effects(effects_of(units, means))
    names = {text.get_text(): text.xyann for text in ax.texts}
    assert set(names) == {"L0H7", "L3H3", "L9H1"}
    assert names["L0H7"][1] - names["L3H3"][1] > 0.1  # apart, though their points are not


def test_the_layers_figure_has_a_dot_a_head_and_the_mean(some):
    ax = effects_by_layer(some)
    (dots,) = ax.collections
    assert sorted(dots.get_offsets()[:, 0].tolist()) == [0, 0, 1, 1, 2, 2]
    mean = next(line for line in ax.lines if len(line.get_xdata()) == 3)
    np.testing.assert_allclose(mean.get_ydata(), [0.5, 0.25, -0.3565], atol=1e-6)


def test_a_set_is_drawn_against_its_controls():
    effects = torch.tensor([3.0, 5.0, 4.0])
    test = control_test(effects, torch.tensor([[0.0, 4.0, 2.0]] * 3))
    ax = against_controls(test, "logit_difference")
    controls, mine = (dots.get_offsets() for dots in ax.collections if isinstance(dots, PathCollection))
    assert sorted(controls[:, 0].tolist()) == [0, 2, 4]
    assert mine.tolist() == [[4, 1]]
    assert ax.get_xlabel() == "effect on logit difference"
    assert "p = 0.5" in ax.get_title()


def test_sets_of_heads_have_no_place_in_a_map():
    sets = effects_of([HeadSet([(0, 0), (1, 1)], 3, 4), HeadSet([(0, head) for head in range(4)], 3, 4)], [1.0, 0.5])
    for figure in (effect_map, effects_by_layer):
        with pytest.raises(ScoreError, match="these are of sets of heads"):
            figure(sets)
    labels = [label.get_text() for label in sorted_effects(sets).get_xticklabels()]
    assert labels == ["L0H0 L1H1", "L0H0 + 3 more"]


def test_effects_that_are_undefined_everywhere_are_refused():
    with pytest.raises(ScoreError, match="no unit has an effect on any prompt"):
        effect_map(effects_of([HeadSet([(0, 0)], 3, 4)], [float("nan")]))
