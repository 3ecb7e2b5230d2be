"""Published scores, against tables worked out by hand and against scikit-style counting."""

import math
import random

import pytest

from lmm_lens.data.grading import binary_scores, mme_scores, mmvp_scores
from lmm_lens.errors import ScoreError


def test_binary_scores_are_those_of_a_table_worked_by_hand():
    # TP 3, FP 1, FN 2 of which one said nothing, TN 2, and one no that was not answered
    said = ["yes", "yes", "yes", "yes", "no", None, "no", "no", None]
    labels = ["yes", "yes", "yes", "no", "yes", "yes", "no", "no", "no"]
    scores = binary_scores(said, labels)
    assert scores.accuracy == pytest.approx(5 / 9)
    assert scores.precision == pytest.approx(3 / 4)
    assert scores.recall == pytest.approx(3 / 5)
    assert scores.f1 == pytest.approx(2 / 3)
    assert scores.yes_ratio == pytest.approx(4 / 9)
    assert (scores.n, scores.n_unanswered) == (9, 2)


def test_binary_scores_are_pope_s_where_every_question_is_answered():
    draw = random.Random(0)
    said = [draw.choice(["yes", "no"]) for _ in range(200)]
    labels = [draw.choice(["yes", "no"]) for _ in range(200)]
    tp = sum(a == b == "yes" for a, b in zip(said, labels, strict=True))
    precision, recall = tp / said.count("yes"), tp / labels.count("yes")
    scores = binary_scores(said, labels)
    assert scores.precision == pytest.approx(precision)
    assert scores.recall == pytest.approx(recall)
    assert scores.f1 == pytest.approx(2 * precision * recall / (precision + recall))
    assert scores.accuracy == pytest.approx(sum(a == b for a, b in zip(said, labels, strict=True)) / 200)
    assert scores.yes_ratio == pytest.approx(said.count("yes") / 200)


def test_what_is_not_defined_is_not_a_number():
    never_yes = binary_scores(["no", "no"], ["yes", "no"])
    assert math.isnan(never_yes.precision)
    assert (never_yes.recall, never_yes.f1, never_yes.yes_ratio) == (0, 0, 0)
    no_yes = binary_scores(["no"], ["no"])
    assert all(map(math.isnan, (no_yes.precision, no_yes.recall, no_yes.f1)))
    assert no_yes.accuracy == 1


@pytest.mark.parametrize(
    ("said", "labels", "message"),
    [
        (["Yes."], ["yes"], "said must be 'yes', 'no', None, given 'Yes.'\n  mark answers with yes_no first"),
        (["yes"], [None], "labels must be 'yes', 'no', given None"),
        (
            ["yes"],
            ["yes", "no"],
            "one of each for every question and at least one question, given {'said': 1, 'labels': 2}",
        ),
        ([], [], "at least one question"),
    ],
)
def test_answers_that_cannot_be_scored_are_refused(said, labels, message):
    with pytest.raises(ScoreError) as raised:
        binary_scores(said, labels)
    assert message in str(raised.value)


def mme_table():
    """Three pictures of existence and one of color; what is right is written beside it."""
    rows = [
        ("existence", "a", "yes", "yes"),
        ("existence", "a", "no", "no"),  # both: acc_plus
        ("existence", "b", "yes", "yes"),
        ("existence", "b", "yes", "no"),  # one
        ("existence", "c", None, "yes"),
        ("existence", "c", "no", "no"),  # one, the other not answered
        ("color", "a", "no", "yes"),
        ("color", "a", "yes", "no"),  # none, and the same name as a picture of existence
    ]
    subtasks, groups, said, labels = (list(column) for column in zip(*rows, strict=True))
    return said, labels, groups, subtasks


def test_mme_scores_are_those_of_a_table_worked_by_hand():
    scores = mme_scores(*mme_table())
    existence, color = scores.subtasks["existence"], scores.subtasks["color"]
    assert existence.acc == pytest.approx(100 * 4 / 6)
    assert existence.acc_plus == pytest.approx(100 / 3)
    assert existence.score == pytest.approx(100)
    assert (existence.n_images, existence.n_unanswered) == (3, 1)
    assert (color.acc, color.acc_plus, color.n_images, color.n_unanswered) == (0, 0, 1, 0)
    assert scores.total == pytest.approx(100)
    assert (scores.perception, scores.cognition, scores.n_unanswered) == (None, None, 1)


def test_the_order_of_questions_does_not_matter():
    columns = mme_table()
    order = random.Random(1).sample(range(8), 8)
    mixed = mme_scores(*([column[i] for i in order] for column in columns))
    assert mixed.total == pytest.approx(mme_scores(*columns).total)
    assert mixed.subtasks["existence"] == mme_scores(*columns).subtasks["existence"]


def test_perception_and_cognition_are_sums_of_all_their_subtasks():
    from lmm_lens.data.from_mme import COGNITION, PERCEPTION, SUBTASKS

    assert (len(PERCEPTION), len(COGNITION)) == (10, 4)
    subtasks = [subtask for subtask in SUBTASKS for _ in range(2)]
    labels = ["yes", "no"] * 14
    said = [label if subtask != "OCR" else "yes" for label, subtask in zip(labels, subtasks, strict=True)]
    scores = mme_scores(said, labels, subtasks, subtasks)
    assert scores.perception == pytest.approx(9 * 200 + 50)
    assert scores.cognition == pytest.approx(4 * 200)
    assert scores.total == pytest.approx(scores.perception + scores.cognition)


def test_a_picture_without_its_two_questions_is_refused():
    said, labels, groups, subtasks = mme_table()
    with pytest.raises(ScoreError, match="picture color/a has 1 questions: MME's pictures have two"):
        mme_scores(said[:-1], labels[:-1], groups[:-1], subtasks[:-1])
    with pytest.raises(ScoreError, match="one of each for every question"):
        mme_scores(said, labels, groups[:-1], subtasks)


def test_mmvp_counts_a_pair_if_both_are_right():
    scores = mmvp_scores([True, True, True, False, False, False], ["p", "p", "q", "q", "r", "r"])
    assert (scores.pair_accuracy, scores.accuracy) == (pytest.approx(1 / 3), pytest.approx(1 / 2))
    assert scores.n_pairs == 3
    with pytest.raises(ScoreError, match="pair q has 1 questions: a pair has two"):
        mmvp_scores([True, True, True], ["p", "p", "q"])
    with pytest.raises(ScoreError, match="at least one question"):
        mmvp_scores([], [])
