"""Rank correlations, against scipy and against maps whose agreement is known."""

import pytest
import torch
from scipy.stats import spearmanr

from lmm_lens.studies.ranks import agreement, spearman, split_half

pytestmark = pytest.mark.long


def maps(n, layers=5, heads=8, seed=0):
    return torch.rand(n, layers, heads, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_it_is_spearmans_correlation_ties_and_missing_heads_included():
    a, b = maps(2)
    a = (a * 6).round()  # ties
    b[3] = torch.nan  # a layer without heads
    kept = ~b.isnan()
    assert spearman(a, b) == pytest.approx(spearmanr(a[kept], b[kept]).statistic, abs=1e-12)


def test_a_map_that_does_not_vary_agrees_with_nothing():
    assert torch.tensor(spearman(torch.ones(3, 4), maps(1)[0, :3, :4])).isnan()


def test_agreement_that_is_the_layers_alone_is_left_when_heads_are_shuffled():
    layers = torch.arange(5.0, dtype=torch.float64)[None, :, None].expand(6, 5, 8)
    found = agreement(layers + 0.1 * maps(6, seed=1), layers + 0.1 * maps(6, seed=2))
    assert found.control > 0.9
    assert found.p > 0.05


def test_agreement_of_heads_is_gone_when_they_are_shuffled():
    of_heads = maps(1, seed=3)
    found = agreement(of_heads + 0.02 * maps(6, seed=1), of_heads + 0.02 * maps(6, seed=2))
    assert found.low > 0.9
    assert abs(found.control) < 0.1
    assert found.p == pytest.approx(1 / 201)
    halves = split_half(of_heads + 0.02 * maps(6, seed=1))
    assert halves.low > 0.9


def test_one_prompt_has_no_interval():
    found = agreement(maps(1), maps(1, seed=4))
    assert torch.tensor([found.low, found.high]).isnan().all()
    assert found.n_heads == 40
