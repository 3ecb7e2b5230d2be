"""The control of VAR: as many random tokens as there are sinks take the sinks' part."""

import pytest
import torch

from lmm_lens import VAR, Read
from tests.support.cases import close, edits_of
from tests.support.edited import redistribute
from tests.support.oracle import SlowVAR, spans
from tests.support.planted import DIMS, THRESHOLD, planted

LOOSE = {"sink_dims": DIMS, "sink_threshold": THRESHOLD, "min_nonsink_ratio": 0.0, "min_visual_mass": 0.0}
NEW = 5


def changed_keys(before, after):
    """Keys that give in every head of a row."""
    return {int(j) for j in (after < before - 1e-7).all(0).nonzero()}


def sinks_of(case, inputs, layer):
    case.reference.run(inputs)
    return SlowVAR(case.reference, inputs, DIMS, THRESHOLD).find_sinks(layer)


def test_as_many_words_and_as_many_patches_give_in_place_of_the_sinks():
    case = planted("llava_next")
    read = Read("pattern", [2], rows="last")
    before = case.lens.run(case.prompt, read=[read]).reads["pattern", 2][0, :, 0]
    run = case.lens.run(case.prompt, [VAR(**LOOSE, control=3)], read=[read])
    (sinks,), image = sinks_of(case, case.inputs, 2), spans(case.inputs)["image"][0]
    given = changed_keys(before, run.reads["pattern", 2][0, :, 0])
    assert not given & sinks
    assert (len(given & image), len(given - image)) == (len(sinks & image), len(sinks - image)) == (2, 2)
    close(run.reads["pattern", 2].sum(-1), torch.ones(1, 4, 1))


def test_another_seed_draws_others_and_none_takes_the_sinks():
    case = planted("llava")
    runs = [case.lens.run(case.prompt, [VAR(**LOOSE, control=seed)]) for seed in (None, 0, 1, 0)]
    logits = [run.logits for run in runs]
    assert torch.equal(logits[1], logits[3])
    assert not torch.allclose(logits[1], logits[2], atol=1e-4)
    assert not torch.allclose(logits[0], logits[1], atol=1e-4)
    assert all(edits_of(run)[0] > 0 for run in runs)


def drawn_by_step(name, layer, n_new=NEW):
    """The keys that give, for each row after the image, prompt and generated."""
    case = planted(name)
    read = Read("pattern", [layer], rows="after_image")
    edit = VAR(**LOOSE, first_layer=layer, control=3)
    # an edit of the pattern changes no key or query of its own layer, so the rows can be compared with unedited ones
    before = case.lens.generate(case.prompt, read=[read], max_new_tokens=n_new)
    after = case.lens.generate(case.prompt, [edit], read=[read], max_new_tokens=n_new)
    assert torch.equal(before.tokens[:, :-1], after.tokens[:, :-1]), "choose another prompt: the answers differ"
    old, new = before.reads["pattern", layer][0], after.reads["pattern", layer][0]
    return [changed_keys(old[:, i], new[:, i]) for i in range(old.shape[1])]


def test_while_generating_the_same_tokens_give():
    steps = drawn_by_step("llava", 2)
    last_of_prompt = steps[-NEW]
    assert last_of_prompt
    for step in steps[-NEW + 1 :]:
        assert last_of_prompt <= step, "a generated token has taken the place of one that was drawn before"


def test_in_a_window_too():
    """A key's column is another token in each step there; the window is of eight keys."""
    steps = drawn_by_step("gemma3", 1, n_new=3)
    image = spans(planted("gemma3").inputs)["image"][0]
    rows = [*sorted(spans(planted("gemma3").inputs)["after_image"][0]), 17, 18]
    drawn = set.union(*steps)
    assert drawn & image
    for row, step in zip(rows, steps, strict=True):
        visible = {j for j in drawn if row - 8 < j <= row}
        assert step in (set(), visible)  # a row that sees no other patch is left alone


def test_the_control_does_as_much_as_what_it_controls():
    """The rows that the sinks choose, the mass that they would give, and a word on what could not be matched."""
    case = planted("llava")
    settings = {**LOOSE, "min_visual_mass": 0.2, "min_nonsink_ratio": 0.5, "first_layer": 2}
    own = case.lens.run(case.prompt, [VAR(**settings)]).reports[0]
    control = case.lens.run(case.prompt, [VAR(**settings, control=0)]).reports[0]
    layer = min(layer for layer, n in own.edits.items() if n)  # up to there both run on the same activations
    assert own.edits[layer] == control.edits[layer] > 0
    assert control.moved[layer] + control.short[layer] == pytest.approx(own.moved[layer], rel=1e-4)
    assert own.short == {}
    assert ("could not be" in str(control)) == (sum(control.short.values()) > 1e-6)


def test_by_hand_the_control_moves_the_mass_of_the_sinks_and_no_more_than_its_tokens_hold():
    # keys: sink, text, patch, patch, patch; the sink gives .6 x .4 = .24
    pattern = torch.tensor([[[[0.4, 0.1, 0.1, 0.3, 0.1]]]])
    sink, visual = torch.tensor([[True, False, False, False, False]]), torch.tensor([[False, False, True, True, True]])
    rich, poor = (torch.tensor([[j == k for j in range(5)]]) for k in (3, 1))
    edited, chosen, moved, wanted = redistribute(pattern, visual, sink, 0.6, 0.5, 0.2, givers=rich)
    assert chosen.all()
    close(edited[0, 0, 0], torch.tensor([0.4, 0.1, 0.22, 0.06, 0.22]))
    close(moved, wanted)
    edited, chosen, moved, wanted = redistribute(pattern, visual, sink, 0.6, 0.5, 0.2, givers=poor)
    close(edited[0, 0, 0], torch.tensor([0.4, 0.0, 0.12, 0.36, 0.12]))
    close(moved[0, 0, 0], torch.tensor(0.1))
    close(wanted[0, 0, 0], torch.tensor(0.24))


def test_where_the_sinks_would_move_nothing_their_control_owes_nothing():
    # all patches are sinks, so that nothing could take what they give, however low the limits
    pattern = torch.tensor([[[[0.4, 0.1, 0.2, 0.3]]]])
    sink, visual = torch.tensor([[True, False, True, True]]), torch.tensor([[False, False, True, True]])
    _, _, plainly, _ = redistribute(pattern, visual, sink, 0.6, 0.0, 0.0)
    edited, chosen, moved, wanted = redistribute(
        pattern, visual, sink, 0.6, 0.0, 0.0, givers=torch.tensor([[False, True, False, False]])
    )
    assert torch.equal(edited, pattern)
    assert not chosen.any()
    assert float(plainly) == float(moved) == float(wanted) == 0
