"""Changes are values: what a replay makes of one is what the model gives under its intervention, or it is said."""

from itertools import product

import pytest
import torch

from lmm_lens import AblateHeads, HeadSet
from lmm_lens.effects.ablations import Ablation, units_of
from lmm_lens.interventions import PatchPattern
from lmm_lens.replay import Change, Edit, UnfitError, Variant, record
from lmm_lens.replay.batches import Batches
from lmm_lens.replay.forwards import Forwards
from lmm_lens.replay.patterns import EvenAttention, PatternOf
from lmm_lens.replay.ways import HALVED, Way
from tests.support.cases import double
from tests.support.naive import prompt_of, tolerance


def forwards_of(lens):
    return Forwards(lens, Batches(None, lens.device))


def logits_under(lens, prompt, intervention):
    return lens.run(prompt, [intervention], logits="last").logits[:, 0]


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen3_vl", "paligemma2"])
def test_even_attention_is_a_source_that_the_replay_makes_of_its_recording(name):
    lens, prompt = double(name).lens, prompt_of(name, "left")
    ablation = Ablation(units_of(lens, None), "uniform", "after_image").on(lens, prompt)
    changes = [ablation.changes(row) for row in range(prompt.n_rows)]
    assert all(isinstance(edit.source, EvenAttention) for change in changes[0] for edit in change.variant.edits)
    found = torch.stack([forwards_of(lens).replayed(prompt, row, each)[0] for row, each in enumerate(changes)], 1)
    plain, strongest = lens.run(prompt, logits="last").logits[:, 0], 0.0
    for change, logits in zip(changes[0], found, strict=True):
        own = logits_under(lens, prompt, change.intervention)
        torch.testing.assert_close(logits, own, atol=tolerance(name), rtol=tolerance(name))
        strongest = max(strongest, float((own - plain).abs().max()))
    assert strongest > 1e-3, "an ablation has to show"


def own_pattern(lens, prompt, intervention_of):
    """Every head's own pattern put in the place of itself, by a replay; its intervention is as given."""
    source, rows = PatternOf(record(lens, prompt)), prompt.mask("all")[0]
    every = product(range(lens.n_layers), range(lens.n_heads))
    return [Change(intervention_of(at), Variant((Edit(at[0], "z", rows, source, at[1]),))) for at in every]


def test_a_prompts_own_pattern_changes_nothing():
    lens, prompt = double("llava").lens, prompt_of("llava")
    clean = lens.run(prompt, read=["pattern"])
    unchanged = own_pattern(lens, prompt, lambda head: PatchPattern([head], clean))
    found, way = forwards_of(lens).replayed(prompt, 0, unchanged)
    torch.testing.assert_close(found, clean.logits[:, -1].expand_as(found), atol=1e-12, rtol=1e-12)
    assert way is Way.RESUMED


def test_a_variant_that_is_not_its_intervention_is_not_believed():
    lens, prompt = double("llava").lens, prompt_of("llava")
    changes = own_pattern(lens, prompt, lambda head: AblateHeads([head]))
    with pytest.raises(UnfitError, match="a replayed change differs from the model's own forward"):
        forwards_of(lens).replayed(prompt, 0, changes)
    found, way = forwards_of(lens).changed(prompt, 0, changes)
    assert way is Way.EACH
    assert torch.equal(found[0], logits_under(lens, prompt, AblateHeads([(0, 0)]))[0])


def test_a_change_that_no_replay_can_make_says_why_and_is_a_forward_of_its_own():
    lens, prompt = double("llava").lens, prompt_of("llava")
    pair = HeadSet([(0, 1), (2, 3)], lens.n_layers, lens.n_heads)
    for mode, why in (("uniform", "depends on the layers before"), ("uniform_noncausal", "in the forward itself")):
        (change,) = Ablation((pair,), mode, "all").on(lens, prompt).changes(0)
        with pytest.raises(UnfitError, match=why):
            _ = change.variant
        forwards = forwards_of(lens)
        found, way = forwards.changed(prompt, 0, [change])
        assert way is Way.EACH
        assert why in forwards.reason
        assert torch.equal(found, logits_under(lens, prompt, AblateHeads(pair, mode)))


def test_forwards_of_their_own_are_those_of_the_changes_that_were_asked_for():
    """Other changes of the same prompt are not answered with what is kept of the last ones."""
    lens, prompt = double("llava").lens, prompt_of("llava", "left")
    forwards, first, second = (
        forwards_of(lens),
        *(
            Ablation((HeadSet([head], lens.n_layers, lens.n_heads),), "uniform_noncausal", "all").on(lens, prompt)
            for head in ((0, 1), (1, 2))
        ),
    )
    for ablation, head in ((first, (0, 1)), (second, (1, 2)), (first, (0, 1))):
        own = logits_under(lens, prompt, AblateHeads([head], "uniform_noncausal"))
        for row in range(prompt.n_rows):
            assert torch.equal(forwards.changed(prompt, row, ablation.changes(row))[0][0], own[row])


def test_tokens_are_checked_by_their_difference_which_is_smaller_than_their_logits():
    """A deviation that is nothing beside large logits, and something beside the difference of two of them."""
    lens, prompt = double("vipllava").lens, prompt_of("vipllava")
    layer, decoder, state = lens.adapter.layers[1].module, lens.model.model.language_model, {"fresh": False}
    changes = Ablation(units_of(lens, None), "zero", "all").on(lens, prompt).changes(0)
    tokens = torch.tensor([11, 12])
    hooks = [
        lens.model.lm_head.register_forward_hook(lambda m, a, out: out + 1e4),
        decoder.register_forward_pre_hook(lambda *_: state.update(fresh=True)),
        layer.register_forward_hook(lambda m, a, out: out * (1.001 if state.pop("fresh", False) else 1)),
    ]
    try:
        found, way = forwards_of(lens).replayed(prompt, 0, changes)
        assert (found.shape[0], way) == (len(changes), Way.RESUMED)
        with pytest.raises(UnfitError, match="a replayed change differs from the model's own forward"):
            forwards_of(lens).replayed(prompt, 0, changes, tokens)
    finally:
        for hook in hooks:
            hook.remove()
    everything, _ = forwards_of(lens).replayed(prompt, 0, changes)
    chosen, _ = forwards_of(lens).replayed(prompt, 0, changes, tokens)
    assert torch.equal(chosen, everything[:, tokens])


def test_the_numbers_of_the_ways_are_those_of_files():
    named = {0: "EACH", 1: "RESUMED", 2: "REUSED", 3: "SINGLE", -1: "LEFT_OUT"}
    assert {int(way): way.name for way in Way} == named
    assert HALVED == 8
    assert Way(0).words == "one forward each"
