"""Scores as a value: means, rankings, tables."""

import math

import pytest
import torch

from lmm_lens import HeadScores, HeadSet
from lmm_lens.errors import LensError, ScoreError

# two prompts, three layers of four heads; the means are 0.00, 0.01, ... 0.11 but for two heads
PER_PROMPT = torch.stack([torch.arange(12.0), torch.arange(12.0)]).reshape(2, 3, 4) / 100
PER_PROMPT[0, 1, 2] += 0.3  # mean .06 + .15
PER_PROMPT[1, 0, 0] = 0.09  # mean .045


@pytest.fixture
def table():
    return HeadScores("visual_mass", "last", PER_PROMPT)


def test_values_are_means_over_prompts(table):
    assert table.n_prompts == 2
    for layer in range(3):
        for head in range(4):
            expected = (float(PER_PROMPT[0, layer, head]) + float(PER_PROMPT[1, layer, head])) / 2
            assert float(table.values[layer, head]) == pytest.approx(expected)


def test_top_heads_come_best_first(table):
    assert table.top(4).heads == ((1, 2), (2, 3), (2, 2), (2, 1))
    assert isinstance(table.top(1), HeadSet)
    assert (table.top(1).n_layers, table.top(1).n_heads) == (3, 4)


def test_bottom_heads_come_lowest_first(table):
    assert table.bottom(4).heads == ((0, 1), (0, 2), (0, 3), (1, 0))


def test_heads_can_be_ranked_within_layers(table):
    assert table.top(3, layers=[0, 1]).heads == ((1, 2), (1, 3), (1, 1))
    assert table.bottom(1, layers=(2,)).heads == ((2, 0),)
    assert len(table.top(8, layers=range(2))) == 8


def test_all_heads_can_be_taken(table):
    everything = HeadSet.all(3, 4)
    assert table.top(12) == everything
    assert table.bottom(12) == everything
    assert table.top(12).heads == tuple(reversed(table.bottom(12).heads))  # no two heads score alike


def test_equal_heads_are_ranked_in_the_order_of_the_model():
    even = HeadScores("visual_mass", "last", torch.full((1, 2, 3), 0.5))
    assert even.top(4).heads == even.bottom(4).heads == ((0, 0), (0, 1), (0, 2), (1, 0))


@pytest.mark.parametrize("n", [0, -1, 13])
def test_more_heads_than_there_are_cannot_be_taken(table, n):
    for take in (table.top, table.bottom):
        with pytest.raises(
            ScoreError, match=rf"^{n} heads were asked for, expected 1 to 12 \(the heads with a score\)"
        ):
            take(n)


def test_more_heads_than_the_layers_have_cannot_be_taken(table):
    with pytest.raises(ScoreError, match="5 heads were asked for, expected 1 to 4"):
        table.top(5, layers=[1])


@pytest.mark.parametrize("layer", [3, -1])
def test_layers_the_model_does_not_have_cannot_be_ranked(table, layer):
    with pytest.raises(LensError, match=f"layer {layer} is out of range: the model has layers 0 to 2"):
        table.top(1, layers=[layer])


def test_heads_without_a_score_are_in_no_ranking_and_no_table():
    values = PER_PROMPT.clone()
    values[:, 1] = torch.nan
    scores = HeadScores("visual_mass", "last", values)
    assert {layer for layer, _ in scores.top(8)} == {0, 2}
    assert set(scores.to_pandas()["layer"]) == {0, 2}
    assert len(scores.to_pandas()) == 8
    with pytest.raises(ScoreError, match="expected 1 to 8"):
        scores.top(9)


def test_the_table_has_one_row_a_head_best_first(table):
    frame = table.to_pandas()
    assert list(frame.columns) == ["layer", "head", "visual_mass", "low", "high"]
    assert list(zip(frame["layer"], frame["head"], strict=True))[:3] == [(1, 2), (2, 3), (2, 2)]
    low, high = table.interval()
    for row in frame.itertuples(index=False):
        assert row.visual_mass == pytest.approx(float(table.values[row.layer, row.head]))
        assert row.low == pytest.approx(float(low[row.layer, row.head]))
        assert row.high == pytest.approx(float(high[row.layer, row.head]))
        assert row.low <= row.visual_mass + 1e-6
        assert row.high >= row.visual_mass - 1e-6


def test_the_interval_of_two_prompts_spans_them(table):
    low, high = table.interval(level=0.99)
    assert float(low[1, 2]) == pytest.approx(0.06)  # the lower prompt alone, drawn twice
    assert float(high[1, 2]) == pytest.approx(0.36)
    assert float(low[2, 0]) == pytest.approx(float(high[2, 0]))


def test_a_wider_level_gives_a_wider_interval():
    scores = HeadScores("visual_mass", "last", torch.rand(30, 2, 3, generator=torch.Generator().manual_seed(0)))
    (low, high), (lower, higher) = scores.interval(0.5), scores.interval(0.95)
    assert bool((lower < low).all())
    assert bool((higher > high).all())
    assert torch.equal(low, scores.interval(0.5)[0])


@pytest.mark.parametrize("level", [0, 1, 95])
def test_a_level_is_a_share(table, level):
    with pytest.raises(ScoreError, match=f"level of an interval lies between 0 and 1, given {level}"):
        table.interval(level)


def test_the_repr_is_a_sentence_with_the_best_heads(table):
    assert repr(table) == (
        "HeadScores: visual_mass of 3 layers x 4 heads at query 'last', mean of 2 prompts; "
        "highest L1H2 0.210, L2H3 0.110, L2H2 0.100"
    )


@pytest.mark.parametrize("values", [torch.rand(2, 1, 2), torch.full((1, 2, 2), math.nan)])
def test_few_heads_or_none_can_be_shown_too(values):
    scores = HeadScores("visual_mass", "last", values)
    assert repr(scores).startswith("HeadScores: visual_mass of ")
    assert "<table" in scores._repr_html_()


def test_in_a_notebook_the_ten_best_heads_are_shown(table):
    shown = table._repr_html_()
    assert shown.count("<tr") == 11
    assert "0.210" in shown


def test_scores_are_frozen(table):
    with pytest.raises(AttributeError):
        table.metric = "concentration"
