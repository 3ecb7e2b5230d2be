"""The bootstrap of every room, against a plain loop over the same draws and against numpy's own draws."""

import numpy as np
import pytest
import torch

from lmm_lens.errors import ScoreError
from lmm_lens.statistics import resampling
from lmm_lens.statistics.resampling import bootstrap_interval, interval_where_defined, percentiles, resampled_sums


def test_the_interval_equals_a_plain_bootstrap_loop():
    samples = torch.rand(9, 2, 3, generator=torch.Generator().manual_seed(0))
    low, high = bootstrap_interval(samples, 0.9, 200, seed=4)
    draws = torch.randint(9, (200, 9), generator=torch.Generator().manual_seed(4)).numpy()
    means = np.stack([samples.double().numpy()[draw].mean(0) for draw in draws])
    expected = np.quantile(means, [0.05, 0.95], axis=0)
    np.testing.assert_allclose(low.numpy(), expected[0], atol=1e-6)
    np.testing.assert_allclose(high.numpy(), expected[1], atol=1e-6)


def test_the_interval_is_that_of_any_other_bootstrap_up_to_chance():
    samples = torch.rand(60, generator=torch.Generator().manual_seed(1))
    low, high = bootstrap_interval(samples, resamples=4000)
    draw = np.random.default_rng(7).integers(60, size=(4000, 60))
    expected = np.quantile(samples.numpy()[draw].mean(1), [0.025, 0.975])
    assert [float(low), float(high)] == pytest.approx(expected.tolist(), abs=0.01)
    assert float(low) < float(samples.mean()) < float(high)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    samples = torch.rand(12, 4, generator=torch.Generator().manual_seed(3))
    first, again, other = (bootstrap_interval(samples, seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_interval_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    bootstrap_interval(torch.rand(4, 1, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), before)


def test_one_prompt_gives_an_interval_of_no_width():
    sample = torch.tensor([[0.25, 0.5]])
    low, high = bootstrap_interval(sample)
    assert torch.equal(low, sample[0])
    assert torch.equal(high, sample[0])


def test_heads_that_do_not_exist_have_no_interval_and_spoil_no_other():
    samples = torch.rand(5, 3, generator=torch.Generator().manual_seed(0))
    samples[:, 1] = torch.nan
    low, high = bootstrap_interval(samples)
    assert low.isnan().tolist() == high.isnan().tolist() == [False, True, False]
    alone, _ = bootstrap_interval(samples[:, 2])
    assert float(low[2]) == pytest.approx(float(alone), abs=1e-7)


def test_resampled_sums_are_those_of_a_loop_however_many_draws_are_held_at_once(monkeypatch):
    samples = torch.rand(7, 3, generator=torch.Generator().manual_seed(0)).double()
    draws = torch.randint(7, (50, 7), generator=torch.Generator().manual_seed(2))
    expected = torch.stack([samples[draw].sum(0) for draw in draws])
    for block in (resampling.BLOCK, 40, 1):
        monkeypatch.setattr(resampling, "BLOCK", block)
        torch.testing.assert_close(resampled_sums(samples, 50, torch.Generator().manual_seed(2)), expected)


def test_a_score_that_some_resamples_do_not_define_has_the_interval_of_the_others():
    values = torch.tensor([[1.0, torch.nan], [3.0, torch.nan], [torch.nan, torch.nan]], dtype=torch.float64)
    low, high = percentiles(values, 0.5)
    torch.testing.assert_close(low, torch.tensor([1.5, torch.nan]).double(), equal_nan=True)
    torch.testing.assert_close(high, torch.tensor([2.5, torch.nan]).double(), equal_nan=True)


def test_an_infinite_sample_has_no_interval_and_spoils_no_other():
    samples = torch.tensor([[1.0, 0.5], [torch.inf, 0.5]])
    for bound in bootstrap_interval(samples):
        torch.testing.assert_close(bound, torch.tensor([torch.nan, 0.5]), equal_nan=True)


def test_gaps_are_left_out_value_by_value():
    samples = torch.rand(9, 2, generator=torch.Generator().manual_seed(0))
    samples[3, 1] = torch.nan
    low, high = interval_where_defined(samples, 0.9, 100, 1)
    for column, prompts in ((0, range(9)), (1, [0, 1, 2, 4, 5, 6, 7, 8])):
        alone = bootstrap_interval(samples[list(prompts), column], 0.9, 100, 1)
        torch.testing.assert_close(torch.stack([low[column], high[column]]), torch.stack(alone))


@pytest.mark.parametrize("level", [0, 1, 95])
def test_a_level_is_a_share(level):
    with pytest.raises(ScoreError, match=f"the level of an interval lies between 0 and 1, given {level}"):
        bootstrap_interval(torch.rand(3), level)
