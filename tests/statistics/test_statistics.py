"""Statistics against answers worked by hand, scipy, slow loops, and their promise: p uniform, coverage nominal."""

import math
import resource

import numpy as np
import pytest
import scipy.stats
import torch

from lmm_lens import HeadSet
from lmm_lens.errors import HookError, ScoreError
from lmm_lens.statistics import (
    benjamini_hochberg,
    control_test,
    effects_table,
    head_set_test,
    holm,
    mean_interval,
    paired,
    paired_interval,
    sign_flip_test,
)

NAN = math.nan


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


# ---------------------------------------------------------------------- intervals


def test_the_interval_of_a_paired_difference_is_scipys_up_to_chance():
    a, b = noise(60, seed=1) + 3, noise(60, seed=2)
    mine = paired_interval(a, b, level=0.9, resamples=20_000)
    theirs = scipy.stats.bootstrap(
        (a - b,), np.mean, confidence_level=0.9, n_resamples=20_000, method="percentile", rng=0
    ).confidence_interval
    assert float(mine.mean) == pytest.approx((a - b).mean())
    assert [float(mine.low), float(mine.high)] == pytest.approx(list(theirs), abs=0.02)
    assert int(mine.n) == 60


def test_what_is_hard_for_both_cancels():
    hard = 100 * noise(30, 1)
    interval = paired_interval(hard + np.array([1.0, 2.0]), hard.repeat(2, 1))
    torch.testing.assert_close(interval.low, torch.tensor([1.0, 2.0], dtype=torch.float64))
    torch.testing.assert_close(interval.high, torch.tensor([1.0, 2.0], dtype=torch.float64))


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    samples = np.random.default_rng(0).exponential(size=(50, 2000))  # skewed, mean 1
    interval = mean_interval(samples, level=0.9)
    covered = ((interval.low <= 1) & (interval.high >= 1)).double().mean()
    assert 0.85 < float(covered) < 0.92


def test_a_prompt_without_a_number_is_left_out_of_that_unit_alone():
    samples = noise(20, 3)
    samples[4, 1] = samples[7, 1] = NAN
    interval, whole = mean_interval(samples), mean_interval(noise(20, 3))
    alone = mean_interval(np.delete(samples[:, 1], [4, 7]))
    assert interval.n.tolist() == [20, 18, 20]
    for name in ("mean", "low", "high"):
        found = getattr(interval, name)
        assert found[1] == pytest.approx(float(getattr(alone, name)))
        assert found[[0, 2]].tolist() == getattr(whole, name)[[0, 2]].tolist()


def test_one_prompt_has_a_mean_but_no_interval_and_none_has_neither():
    interval = mean_interval([[2.0, NAN]])
    assert interval.n.tolist() == [1, 0]
    assert float(interval.mean[0]) == 2
    assert all(math.isnan(x) for x in (*interval.low, *interval.high, interval.mean[1]))


def test_an_interval_says_what_it_is():
    assert repr(mean_interval([1.0, 1.0, 1.0])) == "Interval (95%, bootstrap over prompts): 1 (1 to 1), 3 prompts"
    assert repr(mean_interval(noise(4, 2, 5))) == "Interval (95%, bootstrap over prompts) of 10 means, shape (2, 5)"


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: paired_interval(noise(5), noise(5, 2)), "of the same prompts and units, given (5,) and (5, 2)"),
        (lambda: mean_interval(noise(5), level=95), "between 0 and 1, given 95"),
        (lambda: mean_interval(noise(5), resamples=0), "resamples must be at least 1, given 0"),
        (lambda: mean_interval([]), "samples must not be empty, given the shape (0,)"),
        (lambda: mean_interval(3.0), "one number a prompt, given the single number 3.0"),
        (lambda: mean_interval("text"), "a tensor or an array of numbers, given str"),
        (lambda: mean_interval([1.0, math.inf]), "samples must be finite, 1 of 2 are infinite"),
        (lambda: sign_flip_test([1.0], alternative="more"), "unknown alternative 'more'\n  valid: two-sided"),
        (lambda: sign_flip_test([1.0], n_permutations=0), "permutations must be at least 1, given 0"),
        (lambda: holm([0.1, 1.2]), "p-values lie between 0 and 1, given 1.2"),
        (lambda: benjamini_hochberg([-0.1]), "p-values lie between 0 and 1, given -0.1"),
        (lambda: effects_table([HeadSet([(0, 0)], 1, 1)], noise(5, 2)), "[prompt, unit] of 1 units, given (5, 2)"),
    ],
)
def test_what_cannot_be_computed_is_refused(call, text):
    with pytest.raises(ScoreError) as caught:
        call()
    assert text in str(caught.value)


# ---------------------------------------------------------------------- sign flips


@pytest.mark.parametrize(
    ("differences", "alternative", "p"),
    [  # the eight sums of +-1 +-2 +-3 are 6 4 2 0 0 -2 -4 -6
        ([1, 2, 3], "two-sided", 2 / 8),
        ([1, 2, 3], "greater", 1 / 8),
        ([1, 2, 3], "less", 8 / 8),
        ([1, -2, 3], "two-sided", 6 / 8),
        ([1, -2, 3], "greater", 3 / 8),
        ([1, -2, 3], "less", 6 / 8),
        ([-1, -2, NAN, -3], "less", 1 / 8),
        ([0, 0, 0], "two-sided", 1),
        ([0.1, 0.2, -0.3], "two-sided", 1),  # a sum of 0 but for rounding
        ([5], "two-sided", 1),
        ([NAN, NAN], "two-sided", NAN),
    ],
)
def test_the_exact_sign_flip_test_by_hand(differences, alternative, p):
    test = sign_flip_test(torch.tensor(differences, dtype=torch.float64), alternative=alternative)
    assert test.exact
    assert float(test.p) == pytest.approx(p, nan_ok=True)
    assert int(test.n) == sum(not math.isnan(x) for x in differences)


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_the_exact_sign_flip_test_is_scipys(alternative):
    differences = noise(9, 2, 3) + 0.3
    theirs = scipy.stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", alternative=alternative, n_resamples=np.inf, axis=0
    )
    mine = sign_flip_test(differences, alternative=alternative)
    assert (mine.exact, mine.n_permutations) == (True, 512)
    np.testing.assert_allclose(mine.p, theirs.pvalue)
    np.testing.assert_allclose(mine.mean, theirs.statistic)


def test_random_choices_of_signs_come_near_to_all_of_them():
    differences = noise(13, 5) + 0.4
    exact, drawn = sign_flip_test(differences), sign_flip_test(differences, 8000)
    assert (exact.exact, drawn.exact) == (True, False)
    torch.testing.assert_close(drawn.p, exact.p, atol=0.02, rtol=0)


def test_a_p_value_is_never_0():
    test = sign_flip_test(np.full(40, 1.0), n_permutations=99)
    assert float(test.p) == pytest.approx(1 / 100)
    assert repr(test) == "SignFlip (two-sided, 99 random choices of signs): mean 1, p 0.01, 40 prompts"


def test_p_values_of_nothing_are_uniform():
    draws = np.random.default_rng(0).standard_t(3, size=(25, 1000))
    for alternative in ("two-sided", "greater", "less"):
        p = sign_flip_test(draws, 2000, alternative=alternative).p
        assert scipy.stats.kstest(p, "uniform").pvalue > 0.01


def test_a_real_difference_is_found():
    p = sign_flip_test(noise(30, 200) + 0.8).p
    assert float((p < 0.05).double().mean()) > 0.95  # the t test's power is .99


def test_units_are_tested_with_the_same_signs_whatever_is_tested_beside_them(monkeypatch):
    differences = noise(30, 8)
    together = sign_flip_test(differences, 3000, seed=5)
    alone = [float(sign_flip_test(differences[:, i], 3000, seed=5).p) for i in range(8)]
    assert together.p.tolist() == alone
    monkeypatch.setattr(paired, "BLOCK", 1000)  # 33 choices of signs at once
    assert sign_flip_test(differences, 3000, seed=5).p.tolist() == alone
    assert sign_flip_test(differences, 3000, seed=6).p.tolist() != alone
    monkeypatch.setattr(paired, "BLOCK", 100)
    np.testing.assert_array_equal(sign_flip_test(differences[:9]).p, _exact_in_one_go(differences[:9]))


def _exact_in_one_go(differences):
    signs = np.array(np.meshgrid(*[[-1, 1]] * len(differences))).reshape(len(differences), -1)
    sums = np.abs(np.einsum("ps,pu->su", signs, differences))
    return (sums >= np.abs(differences.sum(0)) - 1e-9).mean(0)


def test_memory_does_not_grow_with_the_number_of_permutations():
    differences = noise(200, 50)
    sign_flip_test(differences, 100)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sign_flip_test(differences, 200_000)  # 320 MB of signs
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 120_000  # in KB


# ---------------------------------------------------------------------- head sets


def test_the_head_set_test_by_hand():
    effects = torch.tensor([[9.0, 9, 9, 9], [1, 2, 3, 4]])
    test = head_set_test(effects, HeadSet([(1, 3), (1, 2)], 2, 4))
    # the means of two of 1 2 3 4 are 1.5 2 2.5 2.5 3 3.5
    assert (test.n_sets, test.exact) == (6, True)
    assert sorted(test.null.tolist()) == [1.5, 2, 2.5, 2.5, 3, 3.5]
    assert (test.observed, test.p) == (3.5, pytest.approx(1 / 6))
    assert test.z == pytest.approx((3.5 - 2.5) / math.sqrt(2.5 / 6))
    assert repr(test) == (
        "HeadSetTest: mean effect 3.5 of 2 heads, 2.5 of random sets in the same layers (all 6); "
        "z +1.55, p 0.167 (greater)"
    )
    for heads, alternative, p in [((0, 1), "greater", 1), ((0, 1), "less", 1 / 6), ((2, 3), "two-sided", 2 / 6)]:
        chosen = HeadSet([(1, head) for head in heads], 2, 4)
        assert head_set_test(effects, chosen, alternative=alternative).p == pytest.approx(p)


def test_sets_of_several_layers_are_all_looked_at():
    effects = torch.tensor([[0.0, 1, 2], [10, 20, 30], [5, 5, 5]])
    test = head_set_test(effects, HeadSet([(0, 2), (1, 0), (1, 2)], 3, 3))
    expected = [(a + sum(pair)) / 3 for a in (0, 1, 2) for pair in ((10, 20), (10, 30), (20, 30))]
    assert test.n_sets == 3 * 3
    assert sorted(test.null.tolist()) == pytest.approx(sorted(expected))
    assert test.p == pytest.approx(sum(x >= 14 for x in expected) / 9)


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_random_sets_are_those_of_random_like(statistic):
    effects = torch.from_numpy(noise(6, 16))
    heads = HeadSet([(1, 2), (1, 3), (1, 4), (4, 0), (4, 9), (5, 5)], 6, 16)
    test = head_set_test(effects, heads, 4000, statistic=statistic)
    assert (test.n_sets, test.exact, len(test.null)) == (560 * 120 * 16, False, 4000)
    summary = {"mean": np.mean, "median": np.median}[statistic]
    others = [heads.random_like(seed, disjoint=False) for seed in range(3000)]
    slow = np.array([summary([float(effects[head]) for head in each]) for each in others])
    observed = summary([float(effects[head]) for head in heads])
    assert test.observed == pytest.approx(observed)
    assert test.p == pytest.approx((1 + sum(slow >= observed)) / 3001, abs=0.04)
    assert test.z == pytest.approx((observed - slow.mean()) / slow.std(), abs=0.1)
    assert scipy.stats.ks_2samp(test.null, slow).pvalue > 0.01


def test_p_values_of_random_sets_are_uniform():
    effects = torch.from_numpy(noise(4, 12))
    heads = HeadSet([(0, 0), (0, 1), (2, 3), (3, 4)], 4, 12)
    sets = [heads.random_like(seed, disjoint=False) for seed in range(400)]
    for alternative in ("greater", "less"):
        p = [head_set_test(effects, each, 500, seed, alternative=alternative).p for seed, each in enumerate(sets)]
        assert scipy.stats.kstest(p, "uniform").pvalue > 0.01


def test_a_median_is_not_moved_by_one_strong_head_where_a_mean_is():
    effects = torch.zeros(1, 10)
    effects[0, 0] = 100
    heads = HeadSet([(0, 0), (0, 1), (0, 2)], 1, 10)
    assert head_set_test(effects, heads).p == pytest.approx(36 / 120)
    by_median = head_set_test(effects, heads, statistic="median")
    assert (by_median.p, by_median.observed) == (1, 0)
    assert math.isnan(by_median.z)


def test_heads_without_an_effect_are_in_no_random_set():
    effects = torch.tensor([[1.0, NAN, 3, 4]])
    test = head_set_test(effects, HeadSet([(0, 3)], 1, 4))
    assert sorted(test.null.tolist()) == [1, 3, 4]
    with pytest.raises(ScoreError, match=r"L0H1 of the set has no effect: it is NaN"):
        head_set_test(effects, HeadSet([(0, 3), (0, 1)], 1, 4))


def test_a_layer_that_leaves_no_freedom_is_refused_with_the_number_of_sets_without_it():
    effects = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    whole = HeadSet.all(3, 4, layers=[1])
    with pytest.raises(ScoreError) as caught:
        head_set_test(effects, whole | HeadSet([(0, 1), (0, 2)], 3, 4))
    assert str(caught.value) == (
        "all measured heads of layers [1] are in the set, so every random set has them too\n"
        "  leave these layers out: without them there are 6 different sets"
    )
    with pytest.raises(ScoreError, match="there is only this one set with its layer spread: take fewer heads"):
        head_set_test(effects, whole)


def test_a_head_set_test_refuses_what_it_cannot_answer():
    effects, heads = torch.ones(3, 4), HeadSet([(0, 0)], 3, 4)
    with pytest.raises(HookError, match=r"a model with 3 layers x 4 heads, the effects are \(4, 3\)"):
        head_set_test(effects.T, heads)
    with pytest.raises(ScoreError, match="unknown statistic 'meen', did you mean 'mean'"):
        head_set_test(effects, heads, statistic="meen")
    with pytest.raises(ScoreError, match="the head set is empty"):
        head_set_test(effects, heads - heads)
    with pytest.raises(ScoreError, match="the number of draws must be at least 1, given 0"):
        head_set_test(effects, heads, n_draws=0)


def test_a_set_among_astronomically_many_is_tested_at_once():
    effects = torch.from_numpy(noise(32, 32))
    heads = HeadSet([(layer, head) for layer in range(32) for head in range(0, 32, 2)], 32, 32)
    test = head_set_test(effects, heads, 500)
    assert "500 random ones of about 10^281" in repr(test)
    assert 0 < test.p < 1


# ---------------------------------------------------------------------- sets ablated together, and random ones


def test_a_set_and_its_controls_by_hand():
    test = control_test([3.0, 5.0], [[0.0, 4.0, 2.0], [0.0, 4.0, 6.0]])
    assert test.null.tolist() == [0, 4, 4]
    assert test.p == 3 / 4  # two controls do as much as the set's 4
    assert float(test.effect.mean) == 4
    assert float(test.difference.mean) == pytest.approx(4 - 8 / 3)
    assert test.z == pytest.approx((4 - 8 / 3) / np.std([0, 4, 4], ddof=1))
    assert test.n_prompts == 2


def test_prompts_on_which_something_is_undefined_do_not_count():
    effects, controls = noise(12), noise(12, 4, seed=1)
    effects[3], controls[5, 2] = NAN, NAN
    kept = [i for i in range(12) if i not in (3, 5)]
    mine, theirs = control_test(effects, controls), control_test(effects[kept], controls[kept])
    assert (mine.n_prompts, mine.p, mine.z) == (10, theirs.p, theirs.z)
    assert mine.difference.low == theirs.difference.low
    with pytest.raises(ScoreError, match="no prompt on which the set and all its controls have an effect"):
        control_test([NAN, 1.0], [[1.0], [NAN]])
    with pytest.raises(ScoreError, match=r"given \(2,\) and \(3, 1\)"):
        control_test([1.0, 1.0], [[1.0], [1.0], [1.0]])


def test_the_difference_to_the_controls_is_paired():
    hard = 100 * noise(30)  # prompts differ much more than heads do
    test = control_test(hard + 2, hard[:, None] + np.array([0.0, 0.5, 1.0]))
    assert [float(test.difference.low), float(test.difference.high)] == pytest.approx([1.5, 1.5])
    assert float(test.effect.high - test.effect.low) > 10
    assert math.isnan(control_test(hard, hard[:, None].repeat(3, 1)).z)


# ---------------------------------------------------------------------- many tests


def test_holm_and_benjamini_hochberg_by_hand():
    p = torch.tensor([[0.01, 0.04], [0.03, 0.005]], dtype=torch.float64)
    # Holm: .005 * 4, .01 * 3, .03 * 2, .04 * 1 and never less than the one before
    assert holm(p).tolist() == [pytest.approx([0.03, 0.06]), pytest.approx([0.06, 0.02])]
    # Benjamini-Hochberg: .04 * 4/4, .03 * 4/3, .01 * 4/2, .005 * 4 and never more than the one before
    assert benjamini_hochberg(p).tolist() == [pytest.approx([0.02, 0.04]), pytest.approx([0.04, 0.02])]


@pytest.mark.parametrize("correction", [holm, benjamini_hochberg])
def test_nan_is_no_test_and_stays_where_it_is(correction):
    p = [0.01, NAN, 0.04, 0.03, NAN, 0.005]
    corrected = correction(p)
    assert corrected.isnan().tolist() == [False, True, False, False, True, False]
    assert corrected[[0, 2, 3, 5]].tolist() == correction([0.01, 0.04, 0.03, 0.005]).tolist()
    assert correction([NAN]).isnan().all()
    assert correction(p[:2])[0] == 0.01


def test_holm_finds_anything_false_in_no_more_than_5_percent_of_experiments():
    p = np.random.default_rng(0).uniform(size=(2000, 20))
    any_false = np.mean([bool((holm(row) < 0.05).any()) for row in p])
    assert 0.03 < any_false < 0.065


def test_of_what_benjamini_hochberg_finds_no_more_than_5_percent_is_false():
    rng = np.random.default_rng(0)
    p = rng.uniform(size=(500, 50))
    p[:, :10] = rng.uniform(high=1e-4, size=(500, 10))  # ten of fifty are real
    found = np.stack([benjamini_hochberg(row).numpy() < 0.05 for row in p])
    assert found[:, :10].all()
    assert 0.03 < np.mean(found[:, 10:].sum(1) / found.sum(1)) <= 0.05


# ---------------------------------------------------------------------- the table


def test_the_table_of_a_sweep_lists_every_unit_with_its_statistics_largest_effect_first():
    units = [HeadSet([(0, 1)], 2, 3), HeadSet([(1, 2)], 2, 3), HeadSet([(0, 0), (1, 1)], 2, 3), HeadSet([(1, 0)], 2, 3)]
    effects = noise(40, 4) + np.array([0, 2, -3, NAN])
    table = effects_table(units, effects, seed=3)
    assert list(table) == ["unit", "layer", "head", "effect", "low", "high", "p", "p_holm", "q_bh", "n"]
    assert table["unit"].tolist() == ["L1H2", "L0H1", "L0H0 L1H1", "L1H0"]
    assert table["layer"].tolist()[:2] == [1, 0]
    assert table["layer"].isna().tolist() == [False, False, True, False]
    assert table["n"].tolist() == [40, 40, 40, 0]
    order = [1, 0, 2]
    test, interval = sign_flip_test(effects, seed=3), mean_interval(effects, seed=3)
    for column, expected in {
        "effect": effects.mean(0),
        "low": interval.low,
        "high": interval.high,
        "p": test.p,
        "p_holm": holm(test.p),
        "q_bh": benjamini_hochberg(test.p),
    }.items():
        np.testing.assert_array_almost_equal(table[column][:3], np.asarray(expected)[order], 12)
        assert math.isnan(table[column][3])
    assert (table["p_holm"] < 0.05).tolist() == [True, False, True, False]


def test_a_strong_head_survives_the_correction_for_a_thousand_others():
    units = [HeadSet([(layer, head)], 32, 32) for layer in range(32) for head in range(32)]
    effects = noise(20, 1024)
    effects[:, 77] += 5
    table = effects_table(units, effects)
    assert table["unit"][0] == "L2H13"
    assert table["p_holm"][0] < 0.05
    assert (table["p_holm"][1:] > 0.05).all()
