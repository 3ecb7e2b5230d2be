"""Bootstrap intervals, against a slow resampling of the questions themselves and against known intervals."""

import math
import random

import numpy as np
import pytest

from lmm_lens.data.grading import binary_scores, bootstrap, mme_scores, mmvp_scores
from lmm_lens.errors import ScoreError


def answered(n, seed, accuracy=0.8):
    draw = random.Random(seed)
    labels = [draw.choice(["yes", "no"]) for _ in range(n)]
    other = {"yes": "no", "no": "yes"}
    said = [label if draw.random() < accuracy else draw.choice([other[label], None]) for label in labels]
    return said, labels


def slowly(score, units, draws, seed):
    """Percentiles of a score computed anew on units drawn with replacement."""
    draw = random.Random(seed)
    values = [score([draw.choice(units) for _ in units]) for _ in range(draws)]
    return np.nanquantile(values, [0.025, 0.975])


@pytest.mark.parametrize("name", ["accuracy", "precision", "recall", "f1", "yes_ratio"])
def test_intervals_are_those_of_scoring_resampled_questions(name):
    said, labels = answered(60, 1)
    fast = bootstrap(binary_scores(said, labels), resamples=4000)[name]
    units = list(zip(said, labels, strict=True))
    slow = slowly(lambda drawn: getattr(binary_scores(*zip(*drawn, strict=True)), name), units, 1500, 2)
    assert fast == pytest.approx(tuple(slow), abs=0.03)


def test_the_interval_of_the_accuracy_is_the_textbook_s():
    said, labels = answered(2000, 3)
    scores = binary_scores(said, labels)
    error = 1.96 * math.sqrt(scores.accuracy * (1 - scores.accuracy) / 2000)
    low, high = bootstrap(scores, resamples=4000)["accuracy"]
    assert (scores.accuracy - low, high - scores.accuracy) == pytest.approx((error, error), rel=0.08)


def test_pairs_are_resampled_whole():
    right = [True, True] * 50 + [False, False] * 50  # two equal answers a pair: 100 draws, not 200
    groups = [i // 2 for i in range(200)]
    low, high = bootstrap(mmvp_scores(right, groups), resamples=4000)["accuracy"]
    of_pairs, of_questions = 1.96 * math.sqrt(0.25 / 100), 1.96 * math.sqrt(0.25 / 200)
    assert (high - low) / 2 == pytest.approx(of_pairs, rel=0.08)
    assert (high - low) / 2 > 1.2 * of_questions


def test_pictures_are_resampled_within_their_subtask():
    said, labels = answered(80, 4)
    groups, subtasks = [i // 2 for i in range(80)], ["color"] * 20 + ["count"] * 60
    fast = bootstrap(mme_scores(said, labels, groups, subtasks), resamples=4000)
    draw = random.Random(5)
    values = []
    for _ in range(1000):
        kept = [draw.randrange(10) for _ in range(10)] + [10 + draw.randrange(30) for _ in range(30)]
        rows = [2 * image + i for image in kept for i in (0, 1)]
        again = [place // 2 for place in range(80)]  # an image drawn twice counts as two
        columns = ([column[row] for row in rows] for column in (said, labels))
        values.append(mme_scores(*columns, again, [subtasks[row] for row in rows]).total)
    assert fast["total"] == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])), abs=4)
    assert set(fast) == {"color acc", "color acc_plus", "count acc", "count acc_plus", "total"}
    sure = mme_scores(labels, labels, groups, subtasks)
    assert bootstrap(sure, resamples=50)["total"] == (400, 400)


def test_a_subtask_keeps_its_number_of_pictures_in_every_resample():
    # of two pictures one is right: 0, 50 or 100 with chances 1/4, 1/2, 1/4, so the middle 40% are 50; drawn from one
    # pot with the other pictures their number would vary, and less than 20% would be 50
    said = ["yes", "yes", "no", "no"] + ["yes"] * 60
    groups, subtasks = [i // 2 for i in range(64)], ["color"] * 4 + ["count"] * 60
    scores = mme_scores(said, ["yes"] * 64, groups, subtasks)
    assert bootstrap(scores, level=0.4, resamples=4000)["color acc_plus"] == (50, 50)


def test_the_seed_makes_the_interval_and_the_level_its_width():
    scores = binary_scores(*answered(100, 6))
    assert bootstrap(scores, seed=1) == bootstrap(scores, seed=1) != bootstrap(scores, seed=2)
    wide, narrow = (bootstrap(scores, level=level)["f1"] for level in (0.99, 0.5))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_a_score_that_is_never_defined_has_no_interval():
    intervals = bootstrap(binary_scores(["no"] * 5, ["no"] * 5), resamples=20)
    assert all(map(math.isnan, intervals["precision"]))
    assert intervals["accuracy"] == (1, 1)


@pytest.mark.parametrize("wrong", [{"level": 1}, {"level": 0}, {"resamples": 0}])
def test_levels_and_draws_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ScoreError, match="a level between 0 and 1 and at least 1 resample"):
        bootstrap(binary_scores(["yes"], ["yes"]), **wrong)
