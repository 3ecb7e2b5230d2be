"""Metrics of answers of one's own in a sweep."""

import pytest
import torch

from lmm_lens import HeadEffects, HeadSet, head_effects
from lmm_lens.data import shapes, table
from lmm_lens.errors import ScoreError

HEADS = HeadSet([(1, 4), (2, 0), (2, 5)], n_layers=6, n_heads=8)


@pytest.fixture(scope="module")
def samples():
    return list(shapes(4, kinds=["color"], seed=3))


def right_log_prob(logits, goal):
    """Log-probability of the right answer, by hand."""
    return logits.log_softmax(-1)[:, goal.right[0]]


def kept(logits, goal):
    """Minus the KL divergence from the plain forward."""
    logs = logits.log_softmax(-1)
    return -(logs[:1].exp() * (logs[:1] - logs)).sum(-1)


def test_the_library_s_metric_written_again_gives_its_numbers(lens, samples):
    given = head_effects(lens, samples, metric=right_log_prob, heads=HEADS)
    expected = head_effects(lens, samples, metric="log_prob", heads=HEADS)
    torch.testing.assert_close(given.per_prompt, expected.per_prompt)
    torch.testing.assert_close(given.clean, expected.clean)
    assert (given.metric, given.meaning) == ("right_log_prob", "Log-probability of the right answer, by hand.")
    assert list(given.top(2)) == list(expected.top(2))
    table, same = given.total("right_log_prob"), expected.total("log_prob")
    torch.testing.assert_close(torch.tensor(table["value"]), torch.tensor(same["value"]))


def test_the_plain_forward_comes_first_and_a_metric_may_compare_with_it(lens, samples):
    given = head_effects(lens, samples, metric=kept, heads=HEADS)
    assert given.clean.abs().max() < 1e-12
    assert (given.per_prompt >= 0).all()
    assert given.per_prompt.max() > 0.01
    assert given.of("log_prob").metric == "log_prob"
    assert given.of("log_prob").of("kept").metric == "kept"
    with pytest.raises(ScoreError, match=r"unknown metric 'kep', did you mean 'kept'\?"):
        given.of("kep")


def test_it_is_saved_with_the_rest_and_goes_on_in_a_folder(lens, samples, tmp_path):
    folder = tmp_path / "run"
    first = head_effects(lens, samples[:2], metric=kept, heads=HEADS, folder=folder)
    first.save(tmp_path / "effects.safetensors")
    for again in (
        HeadEffects.load(tmp_path / "effects.safetensors", lens),
        HeadEffects.open(folder, "kept"),
        head_effects(lens, samples[:2], metric=kept, heads=HEADS, folder=folder),
    ):
        assert torch.equal(again.per_prompt, first.per_prompt)
        assert (again.metric, again.meaning) == ("kept", "Minus the KL divergence from the plain forward.")
    with pytest.raises(ScoreError, match="own_metric"):
        head_effects(lens, samples[:2], metric=right_log_prob, heads=HEADS, folder=folder)


def test_a_row_that_is_left_out_has_no_number(lens, samples):
    rows = [{"question": each.question, "answer": each.answer, "image": each.images[0]} for each in samples[:3]]
    rows[1]["answer"] = "\N{SNOWMAN}"  # no token of the model
    given = head_effects(lens, table(rows, on_bad="skip"), metric=kept, heads=HEADS)
    both = head_effects(lens, [samples[0], samples[2]], metric=kept, heads=HEADS)
    assert len(given.left_out) == 1
    torch.testing.assert_close(given.per_prompt, both.per_prompt)


def named(function, name):
    function.__name__ = name
    return function


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        (lambda logits, goal: logits[:, 0], "(logits, goal) -> numbers with a name"),
        (3, "metric is a name, or a function (logits, goal) -> numbers with a name, given 3"),
        (named(lambda logits, goal: logits[:, 0], "f1"), "'f1' is a metric of this library"),
        (named(lambda logits, goal: logits, "whole"), "whole returned [4,"),
        (named(lambda logits, goal: 1.0, "one"), "one returned float\n  expected one number a forward, [4], of logits"),
        (
            named(lambda logits, goal: logits[:, 0] / 0, "endless"),
            "for the plain forward\n  a metric is a finite",
        ),
        ("log_prop", "unknown metric 'log_prop'"),
    ],
)
def test_what_is_no_metric_is_refused(lens, samples, metric, text):
    with pytest.raises(ScoreError) as caught:
        head_effects(lens, samples[:1], metric=metric, heads=HEADS)
    assert text in str(caught.value)
