"""Replayed sweeps equal the naive one, in fp64, on every family."""

import pytest
import torch

from lmm_lens.effects.ablations import Ablation, units_of
from lmm_lens.replay import Edit, Replay, Variant, record
from lmm_lens.replay.batches import Batches
from lmm_lens.replay.forwards import Forwards
from lmm_lens.replay.ways import Way
from tests.support.cases import double
from tests.support.models import FAMILIES
from tests.support.naive import logits_without, prompt_of, tolerance

WHOLE = ("paligemma", "paligemma2", "qwen3_5")
"""Prompts that see both ways, and layers that carry a state: every row is computed again."""


def sweep(name, padded, rows, rows_per_pass=None):
    """Every head alone: the replayed logits [unit, row, vocab], and how each row's were computed."""
    lens, prompt = double(name).lens, prompt_of(name, padded)
    ablation = Ablation(units_of(lens, None), "zero", rows).on(lens, prompt)
    forwards = Forwards(lens, Batches(rows_per_pass, lens.device))
    found = [forwards.changed(prompt, row, ablation.changes(row)) for row in range(prompt.n_rows)]
    return torch.stack([logits for logits, _ in found], 1), [way for _, way in found], forwards


@pytest.mark.parametrize("rows", ["last", "after_image", "all"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_head_alone_equals_a_forward_of_its_own(name, rows):
    lens, prompt = double(name).lens, prompt_of(name)
    given, ways, forwards = sweep(name, "", rows)
    assert not forwards.reason
    assert ways == [Way.RESUMED if rows == "all" or name in WHOLE else Way.SINGLE if rows == "last" else Way.REUSED]
    plain, strongest = logits_without(lens, prompt, [], prompt.mask(rows)), 0.0
    for unit, logits in zip(units_of(lens, None), given, strict=True):
        naive = logits_without(lens, prompt, list(unit), prompt.mask(rows))
        torch.testing.assert_close(logits, naive, atol=tolerance(name), rtol=tolerance(name))
        strongest = max(strongest, float((naive - plain).abs().max()))
    assert strongest > 0.02, "an ablation has to show"


PADDED = ("llava", "qwen2_vl", "qwen3_vl", "gemma3", "paligemma", "mllama", "qwen3_5", "idefics3")


@pytest.mark.parametrize("padded", ["left", "right"])
@pytest.mark.parametrize("name", PADDED)
def test_the_rows_of_a_padded_batch_do_not_mix(name, padded):
    lens, prompt = double(name).lens, prompt_of(name, padded)
    for rows in ("last", "after_image", "all"):
        given, _, forwards = sweep(name, padded, rows)
        assert not forwards.reason
        for index in (0, len(given) // 2, len(given) - 1):
            naive = logits_without(lens, prompt, list(units_of(lens, None)[index]), prompt.mask(rows))
            torch.testing.assert_close(given[index], naive, atol=tolerance(name), rtol=tolerance(name))


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen3_vl", "mllama"])
def test_sets_of_heads_across_layers_equal_forwards_of_their_own(name):
    from lmm_lens import HeadSet
    from lmm_lens.effects import random_subsets

    lens, prompt = double(name).lens, prompt_of(name)
    every = [head for unit in units_of(lens, None) for head in unit]
    units = tuple(random_subsets(HeadSet(every, lens.n_layers, lens.n_heads), 9, seed=1))
    for rows in ("last", "after_image", "all"):
        ablation = Ablation(units, "zero", rows).on(lens, prompt)
        given, _ = Forwards(lens, Batches(None, lens.device)).changed(prompt, 0, ablation.changes(0))
        for unit, logits in zip(units, given, strict=True):
            naive = logits_without(lens, prompt, list(unit), prompt.mask(rows))[0]
            torch.testing.assert_close(logits, naive, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("rows_per_pass", [1, 7, 60, 10**6])
def test_the_size_of_batches_does_not_matter(rows_per_pass):
    for rows in ("last", "after_image", "all"):
        given, _, _ = sweep("llava", "left", rows, rows_per_pass)
        torch.testing.assert_close(given, sweep("llava", "left", rows)[0], atol=1e-12, rtol=1e-12)


def test_rows_are_recomputed_from_the_first_change_on():
    lens, prompt = double("llava").lens, prompt_of("llava")
    replay = Replay(record(lens, prompt))
    rows = torch.zeros(prompt.n_tokens, dtype=torch.bool)
    rows[[12, 20]] = True
    assert replay.window(Variant((Edit(0, "z", rows, None, 0),))).start == 12
    # in the last layer no other row hears of it
    assert replay.window(Variant((Edit(lens.n_layers - 1, "z", rows, None, 0),))).start == prompt.n_tokens - 1
    assert replay.window(Variant((Edit(lens.n_layers - 1, "resid_pre", rows, None),))).start == 12


def test_where_rows_see_later_ones_the_cut_moves_before_them():
    lens, prompt = double("gemma3").lens, prompt_of("gemma3")
    image = prompt.mask("image")[0].nonzero().flatten()
    rows = torch.zeros(prompt.n_tokens, dtype=torch.bool)
    rows[image[3]] = True  # amid a picture whose tokens see each other
    assert Replay(record(lens, prompt)).window(Variant((Edit(0, "z", rows, None, 0),))).start == int(image[0])
    whole = Replay(record(double("paligemma").lens, prompt_of("paligemma")))
    assert whole.reusable.reason == "some tokens see later ones"
    assert Replay(record(double("qwen3_5").lens, prompt_of("qwen3_5"))).reusable.reason == (
        "layers without attention carry a state from row to row"
    )


def test_nothing_of_a_replay_is_left_on_the_model():
    from tests.support.cases import hooks_of_ours

    model = double("llava").model
    before = model.config.get_text_config()._attn_implementation
    sweep("llava", "left", "all")
    assert hooks_of_ours(model) == []
    assert model.config.get_text_config()._attn_implementation == before


# ---------------------------------------------------------------------- what cannot be replayed is said, and computed


def test_a_model_whose_layers_do_not_repeat_themselves_is_swept_one_forward_each():
    lens, prompt = double("vipllava").lens, prompt_of("vipllava")
    layer, decoder, state = lens.adapter.layers[1].module, lens.model.model.language_model, {"fresh": False}
    # the model does something to its second layer whenever the decoder as a whole is called, which no replay does
    hooks = [
        decoder.register_forward_pre_hook(lambda *_: state.update(fresh=True)),
        layer.register_forward_hook(lambda m, a, out: out * (1.5 if state.pop("fresh", False) else 1)),
    ]
    try:
        given, ways, forwards = sweep("vipllava", "", "all")
        assert ways == [Way.EACH]
        assert forwards.reason == "its layers, run by themselves, do not repeat the plain forward"
        for unit, logits in zip(units_of(lens, None), given, strict=True):
            naive = logits_without(lens, prompt, list(unit), prompt.mask("all"))
            torch.testing.assert_close(logits, naive, atol=1e-12, rtol=1e-12)
    finally:
        for hook in hooks:
            hook.remove()
    assert sweep("vipllava", "", "all")[1] == [Way.RESUMED]


def test_inside_apply_every_forward_is_edited():
    from lmm_lens import AblateHeads

    lens, prompt = double("llava").lens, prompt_of("llava")
    with lens.apply(AblateHeads([(0, 1)])):
        given, ways, forwards = sweep("llava", "", "all")
    assert ways == [Way.EACH]
    assert forwards.reason == "an enclosing lens.apply(...) edits every forward"
    naive = logits_without(lens, prompt, [(0, 1), (2, 3)], prompt.mask("all"))
    index = [tuple(unit) for unit in units_of(lens, None)].index(((2, 3),))
    torch.testing.assert_close(given[index], naive, atol=1e-12, rtol=1e-12)
