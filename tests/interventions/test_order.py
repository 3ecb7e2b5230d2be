"""Interventions in order: the second edits what the first left, against a reference that does the same."""

import pytest
import torch

from lmm_lens import VAR, AblateHeads, BoostAttention, Knockout, KnockoutSinks, PatchHeads, Read
from lmm_lens.warnings import NothingChangedWarning
from tests.support.cases import close
from tests.support.oracle import SlowVAR, each_row, spans
from tests.support.planted import DIMS, planted

NAMES = ["llava", "qwen2_5_vl", "gemma3", "paligemma2", "qwen3_5", "idefics3"]
NEW = 4


@pytest.fixture(params=NAMES)
def case(request):
    return planted(request.param)


def hide(layers, keys, rows):
    """Knockout as an edit of the pattern: zeros, and a new sum."""

    def change(row, b, oldest, own):
        new = row.clone()
        new[[j - oldest for j in keys[b] if 0 <= j - oldest < len(row)]] = 0
        if new.sum() > 0:
            row.copy_(new / new.sum())

    return each_row(layers, rows, None, change)


def even(layers, rows, heads=None):
    """Even attention as an edit of the pattern, to the keys that have any."""

    def change(row, b, oldest, own):
        seen = row > 0
        row.copy_(seen / seen.sum())

    return each_row(layers, rows, heads, change)


def one_after_the_other(*edits):
    def edit(layer, x, first):
        for each in edits:
            x = each(layer, x, first)
        return x

    return edit


def compare(case, ours, slow):
    given = case.lens.generate(case.prompt, ours, max_new_tokens=NEW, logits=True)
    with case.reference.editing(pattern=one_after_the_other(*slow)):
        tokens, logits = case.reference.generate(case.inputs, NEW)
    assert torch.equal(given.tokens, tokens)
    close(given.logits, logits)
    return given


def test_redistribution_and_knockout_do_not_commute(case):
    """After the sinks are hidden, nothing can be moved from them; after it was moved, it stays moved."""
    roles = spans(case.inputs, NEW)
    image, rows = [set(sorted(row)[::2]) for row in roles["image"]], roles["after_image"]
    var, blind = VAR(**case.settings), Knockout(sorted(image[0]), "after_image")
    slow_var = lambda: SlowVAR(case.reference, case.inputs, **case.settings)  # noqa: E731
    slow_blind = hide(case.self_attending, image, rows)
    first = compare(case, [var, blind], [slow_var(), slow_blind])
    second = compare(case, [blind, var], [slow_blind, slow_var()])
    assert (first.logits - second.logits).abs().max() > 1e-4
    assert [report.intervention for report in first.reports] == [str(var), str(blind)]
    assert [report.intervention for report in second.reports] == [str(blind), str(var)]


def test_even_attention_and_redistribution_do_not_commute(case):
    heads = [(layer, head) for layer in case.self_attending for head in (1, 2)]
    rows = spans(case.inputs, NEW)["after_image"]
    settings = {**case.settings, "min_visual_mass": 0.0, "min_nonsink_ratio": 0.0}
    ours = [AblateHeads(heads, "uniform", "after_image"), VAR(**settings)]
    slow_even = even(case.self_attending, rows, (1, 2))
    first = compare(case, ours, [slow_even, SlowVAR(case.reference, case.inputs, **settings)])
    second = compare(case, ours[::-1], [SlowVAR(case.reference, case.inputs, **settings), slow_even])
    assert (first.logits - second.logits).abs().max() > 1e-4


def test_a_boost_raises_what_an_edit_before_it_left(case):
    """exp(alpha |e|) times the edited pattern, renormalised; e is the score before every edit."""
    roles, layers = spans(case.inputs, NEW), [layer for layer in case.self_attending if layer >= 1]
    scores_now: dict = {}

    def remember(layer, scores, first):
        scores_now[layer] = scores.clone()
        return scores

    def slow_boost(layer, pattern, first):
        if layer not in layers:
            return pattern
        oldest = max(0, first + pattern.shape[2] - pattern.shape[3])
        for i in range(pattern.shape[2]):
            if first + i in roles["generating"][0]:
                for j in roles["image"][0]:
                    if j >= oldest and pattern[0, 0, i, j - oldest] + 1 > 0:
                        raised = (0.8 * scores_now[layer][0, :, i, j - oldest].abs()).exp()
                        pattern[0, :, i, j - oldest] *= torch.where(raised.isfinite(), raised, torch.ones(4))
                pattern[0, :, i] /= pattern[0, :, i].sum(-1, keepdim=True)
        return pattern

    hidden = [set(sorted(row)[::2]) for row in roles["image"]]
    slow_blind = hide(layers, hidden, roles["after_image"])
    ours = [Knockout(sorted(hidden[0]), "after_image", layers), BoostAttention(0.8, layers)]
    given = case.lens.generate(case.prompt, ours, max_new_tokens=NEW, logits=True)
    with case.reference.editing(scores=remember, pattern=one_after_the_other(slow_blind, slow_boost)):
        tokens, logits = case.reference.generate(case.inputs, NEW)
    assert torch.equal(given.tokens, tokens)
    close(given.logits, logits)


def test_z_is_edited_after_the_pattern_whatever_the_order(case):
    """The pattern fires before z: zeroing a head undoes what was done to where it looks."""
    layer = case.self_attending[-1]
    zero, blind = AblateHeads([(layer, 1)]), Knockout("image", "question", [layer], [1])
    both = [case.lens.run(case.prompt, edits).logits for edits in ([zero, blind], [blind, zero])]
    assert torch.equal(*both)
    close(both[0], case.lens.run(case.prompt, [zero]).logits)


def test_two_edits_of_z_act_in_order(case):
    other = case.lens.run(case.prompt, read=["z"])
    layer = case.attending[0]
    zero, back = AblateHeads([(layer, 2)]), PatchHeads([(layer, 2)], other, "all")
    read = Read("z", [layer], [2])
    first = case.lens.run(case.prompt, [zero, back], read=[read])
    second = case.lens.run(case.prompt, [back, zero], read=[read])
    close(first.logits, case.logits, 1e-6)
    assert (second.reads["z", layer] == 0).all()
    close(second.logits, case.lens.run(case.prompt, [zero]).logits, 1e-6)


def test_an_outer_block_comes_first():
    case = planted("llava")
    var, blind = VAR(**case.settings), Knockout("image", "question", heads=[0, 1])
    for outer, inner in ((var, blind), (blind, var)):
        with case.lens.apply(outer):
            given = case.lens.run(case.prompt, [inner]).logits
        assert torch.equal(given, case.lens.run(case.prompt, [outer, inner]).logits)


def test_an_edit_that_was_made_before_changes_nothing_more():
    case = planted("llava")
    with pytest.warns(NothingChangedWarning, match="changed nothing"):
        run = case.lens.run(case.prompt, [Knockout("image", "last"), Knockout("image", "last")])
    assert [report.n_edits for report in run.reports] == [20, 0]
    close(run.logits, case.lens.run(case.prompt, [Knockout("image", "last")]).logits, 1e-6)


@pytest.mark.parametrize("swap", [False, True])
def test_each_of_two_interventions_keeps_to_its_own_sinks(swap):
    """One looks for sinks by the planted dimensions, the other by one in which other tokens happen to stand out."""
    case = planted("llava")
    roles = spans(case.inputs, NEW)
    settings = {**case.settings, "min_visual_mass": 0.0, "min_nonsink_ratio": 0.0}
    others = {**settings, "sink_dims": (48,), "sink_threshold": 1.8}
    find, hidden = SlowVAR(case.reference, case.inputs, (48,), 1.8), set()

    def slow_blind(layer, pattern, first):
        sinks = [found & image for found, image in zip(find.find_sinks(layer), roles["image"], strict=True)]
        hidden.update(sinks[0])
        return hide([layer], sinks, roles["after_image"])(layer, pattern, first)

    ours = [VAR(**settings), KnockoutSinks((48,), 1.8)]
    slow = [SlowVAR(case.reference, case.inputs, **settings), slow_blind]
    compare(case, ours[::-1] if swap else ours, slow[::-1] if swap else slow)
    assert hidden
    ours = [VAR(**settings), VAR(**others)]
    slow = [SlowVAR(case.reference, case.inputs, **chosen) for chosen in (settings, others)]
    compare(case, ours[::-1] if swap else ours, slow[::-1] if swap else slow)


def test_a_control_beside_the_sinks_does_not_take_their_place():
    case = planted("llava_next")
    sinks, control = KnockoutSinks(DIMS, 4.0, layers=[1]), KnockoutSinks(DIMS, 4.0, control=1, layers=[1])
    read = Read("pattern", [1], rows="after_image")
    single = [case.lens.run(case.prompt, [edit], read=[read]).reads["pattern", 1] == 0 for edit in (sinks, control)]
    for edits in ([sinks, control], [control, sinks]):
        both = case.lens.run(case.prompt, edits, read=[read]).reads["pattern", 1] == 0
        assert torch.equal(both, single[0] | single[1])
