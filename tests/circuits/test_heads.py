"""The smallest sets of heads: their curves against ablations one by one, their orders, what is refused."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from lmm_lens import AblateHeads, HeadSet, head_effects, smallest_heads
from lmm_lens.circuits import SmallestHeads
from lmm_lens.circuits.smallest import MOST_SIZES, _sizes
from lmm_lens.errors import ScoreError
from tests.support.color_pairs import color_batch

AMONG = HeadSet([(0, 4), (1, 4), (1, 7), (2, 5), (3, 4), (4, 3)], 6, 8)


@pytest.fixture(scope="module")
def colors(lens):
    """Three questions about colours to order heads by, and three others."""
    examples, found = color_batch(lens).examples, []
    for part in (examples[:3], examples[3:6]):
        prompt = lens.prompt([a.question for a, _ in part], images=[a.image for a, _ in part])
        found.append(SimpleNamespace(prompt=prompt, answers=[(a.answer, b.answer) for a, b in part]))
    return found


def ids_of(lens, answers):
    tokens = lens.processor.tokenizer
    return torch.tensor([[tokens(word, add_special_tokens=False)["input_ids"][0] for word in pair] for pair in answers])


def kept(lens, asked, heads):
    """The logit differences with all others of AMONG zeroed in the last row."""
    others = AMONG - heads
    edits = [AblateHeads(others, rows="last")] if others else []
    logits = lens.run(asked.prompt, edits, logits="last").logits[:, 0].double()
    return logits.gather(1, ids_of(lens, asked.answers)).diff().neg().flatten()


@pytest.fixture(scope="module")
def by_effect(lens, colors):
    one, other = colors
    options = {"answers": one.answers, "held_out": other.prompt, "held_out_answers": other.answers}
    return smallest_heads(lens, one.prompt, heads=AMONG, keep=0.8, **options)


def test_the_curve_is_what_the_answer_is_worth_with_all_others_ablated(lens, colors, by_effect):
    other = colors[1]
    assert by_effect.sizes == (1, 2, 3, 4, 5, 6)
    for size, found in zip(by_effect.sizes, by_effect.per_prompt, strict=True):
        torch.testing.assert_close(found, kept(lens, other, by_effect.order[:size]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(by_effect.with_all, kept(lens, other, AMONG), atol=1e-4, rtol=1e-4)
    none = kept(lens, other, HeadSet([], 6, 8))
    torch.testing.assert_close(by_effect.with_none, none, atol=1e-4, rtol=1e-4)
    by_hand = (by_effect.per_prompt.mean(1) - none.mean()) / (by_effect.with_all.mean() - none.mean())
    torch.testing.assert_close(by_effect.values, by_hand, atol=1e-4, rtol=1e-4)
    assert float(by_effect.values[-1]) == pytest.approx(1)


def test_by_effect_heads_stand_as_a_sweep_ranks_them(lens, colors, by_effect):
    one = colors[0]
    swept = head_effects(lens, one.prompt, metric="logit_difference", answers=one.answers, heads=AMONG)
    assert list(by_effect.order) == list(swept.top(6))


def test_it_is_the_first_size_that_keeps_enough(by_effect):
    values = by_effect.values.tolist()
    n = by_effect.n_kept
    assert values[n - 1] >= 0.8
    assert all(value < 0.8 for value in values[: n - 1])
    assert list(by_effect.heads) == list(by_effect.order)[:n]


def test_by_attribution_heads_stand_as_a_screen_estimates_them(lens, colors):
    one = colors[0]
    options = {"metric": "logit_difference", "answers": one.answers, "heads": AMONG}
    found = smallest_heads(lens, one.prompt, "attribution", 0.5, n_random=0, **options)
    estimates = head_effects(lens, one.prompt, screen="attribution", verify=1, sample=0, **options).screen.estimates
    assert list(found.order) == sorted(AMONG, key=lambda head: -float(estimates[head]))
    assert len(found.random) == 0


def test_greedily_each_head_is_the_best_beside_those_before(lens, colors):
    one = colors[0]
    found = smallest_heads(lens, one.prompt, "greedy", 0.95, answers=one.answers, heads=AMONG, n_random=0)
    chosen = HeadSet([], 6, 8)
    for _ in range(found.n_kept):
        tried = {head: float(kept(lens, one, chosen | HeadSet([head], 6, 8)).mean()) for head in AMONG - chosen}
        best = max(tried, key=tried.get)
        assert found.order.heads[len(chosen)] == best
        chosen = chosen | HeadSet([best], 6, 8)
    assert set(found.order) == set(AMONG)


def test_random_sets_are_like_it_in_every_layer(lens, colors):
    one = colors[0]
    every = HeadSet.all(6, 8)
    found = smallest_heads(lens, one.prompt, keep=0.1, answers=one.answers, n_random=2)
    for seed, values in enumerate(found.random):
        control = found.heads.random_like(seed, disjoint="most")
        edit = AblateHeads(every - control, rows="last")
        logits = lens.run(one.prompt, [edit], logits="last").logits[:, 0].double()
        expected = logits.gather(1, ids_of(lens, one.answers)).diff().neg().flatten()
        torch.testing.assert_close(values, expected, atol=1e-4, rtol=1e-4)


def test_random_sets_are_of_the_heads_that_are_ablated(lens, colors):
    """Those outside are kept anyway: a control of them would be a control with fewer heads."""
    one = colors[0]
    found = smallest_heads(lens, one.prompt, keep=0.5, answers=one.answers, heads=AMONG, n_random=3)
    counts = {layer: len(heads) for layer, heads in found.heads.by_layer().items()}
    others = [set(AMONG.by_layer()[layer]) - set(heads) for layer, heads in found.heads.by_layer().items()]
    assert any(others)
    for seed, values in enumerate(found.random):
        control = found.heads.random_like(seed, disjoint="most", among=AMONG)
        assert {layer: len(heads) for layer, heads in control.by_layer().items()} == counts
        assert not control - AMONG
        torch.testing.assert_close(values, kept(lens, one, control), atol=1e-4, rtol=1e-4)


def test_it_says_on_what_it_was_measured_and_is_read_back(lens, by_effect, tmp_path):
    assert "on 3 prompts not used to order them" in repr(by_effect)
    assert repr(by_effect).startswith(f"SmallestHeads by effect: {by_effect.n_kept} heads keep ")
    by_effect.save(tmp_path / "heads.safetensors")
    again = SmallestHeads.load(tmp_path / "heads.safetensors", lens)
    assert repr(again) == repr(by_effect)
    assert again.to_pandas().equals(by_effect.to_pandas())
    assert list(again.to_pandas()["added"]) == [f"L{layer}H{head}" for layer, head in by_effect.order]


def test_of_many_heads_the_first_are_named(by_effect):
    every = HeadSet.all(6, 8)
    large = replace(by_effect, order=every, sizes=(0, 30), per_prompt=by_effect.per_prompt[:2], n_kept=30)
    assert repr(large).splitlines()[1] == f"  {every[:20]} and 10 more"


def test_the_curve_is_drawn(by_effect, tmp_path):
    ax = by_effect.plot()
    (line,) = [line for line in ax.get_lines() if len(line.get_xdata()) == 6]
    assert line.get_ydata().tolist() == pytest.approx(by_effect.values.tolist())
    ax.figure.savefig(tmp_path / "heads.png")


def test_of_many_heads_some_sizes_are_measured():
    assert _sizes(5) == [1, 2, 3, 4, 5]
    many = _sizes(1024)
    assert many[:4] == [1, 2, 3, 4]
    assert many[-1] == 1024
    assert len(many) <= MOST_SIZES


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"by": "effects"}, "unknown order 'effects', did you mean 'effect'"),
        ({"metric": "log_probs"}, "unknown metric 'log_probs', did you mean 'log_prob'"),
        ({"keep": 0}, "above 0 and at most 1, given 0"),
        ({"keep": 1.5}, "above 0 and at most 1, given 1.5"),
    ],
)
def test_arguments_are_checked(lens, colors, given, message):
    with pytest.raises(ScoreError, match=message):
        smallest_heads(lens, colors[0].prompt, answers=colors[0].answers, **given)


def test_an_iterator_is_refused(lens, colors):
    with pytest.raises(ScoreError, match="gone through more than once: give a list or a data set"):
        smallest_heads(lens, iter([colors[0].prompt]), answers=colors[0].answers)


def test_heads_that_do_nothing_for_the_answer_are_refused(lens, colors):
    one = colors[0]
    last = HeadSet([(5, 1), (5, 2)], 6, 8)  # nothing comes behind them that could read the first token
    with pytest.raises(ScoreError, match=r"with all 2 heads ablated the mean logit_difference is what it was"):
        smallest_heads(lens, one.prompt, heads=last, answers=one.answers, rows="bos")
