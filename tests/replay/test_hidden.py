"""Keys that rows lose in a replay: the masked softmax of a knockout, in windows of layers, on every family in fp64."""

from itertools import pairwise

import pytest
import torch

from lmm_lens import Knockout
from lmm_lens.replay import Change, Edit, Hidden, UnfitError, Variant
from lmm_lens.replay.batches import Batches
from lmm_lens.replay.forwards import Forwards
from lmm_lens.replay.ways import Way
from lmm_lens.warnings import NothingChangedWarning
from tests.support.cases import double
from tests.support.models import FAMILIES
from tests.support.naive import prompt_of, tolerance
from tests.support.quick import quick

ROUTES = [("image", "last"), ("image", "question"), ("question", "last"), ("image", "after_image"), ("text", "all")]
WHOLE = ("paligemma", "paligemma2", "qwen3_5")


def changes(lens, prompt, row, source, target):
    """A knockout in each window of two self-attention layers, and in each alone."""
    own = lens.shape.self_attention
    windows = [(layer,) for layer in own] + [(a, b) for a, b in pairwise(own)]
    keys, rows = prompt.mask(source), prompt.mask(target)
    return [
        Change(Knockout(keys, rows, window), Variant((), (Hidden(window, rows[row], keys[row]),))) for window in windows
    ]


def both_ways(name, padded, source, target, rows_per_pass=None):
    """The logits under each knockout by a replay and by a forward each, of all batch rows."""
    lens, prompt = double(name).lens, prompt_of(name, padded)
    forwards, strongest = Forwards(lens, Batches(rows_per_pass, lens.device)), 0.0
    ways = []
    for row in range(prompt.n_rows):
        each = changes(lens, prompt, row, source, target)
        given, way = forwards.replayed(prompt, row, each)
        ways.append(way)
        plain = lens.run(prompt, logits="last").logits[row, 0]
        for change, logits in zip(each, given, strict=True):
            own = lens.run(prompt, [change.intervention], logits="last").logits[row, 0]
            torch.testing.assert_close(logits, own, atol=tolerance(name), rtol=tolerance(name))
            strongest = max(strongest, float((own - plain).abs().max()))
    return strongest, ways


@pytest.mark.parametrize("name", quick(FAMILIES, ("llava", "gemma3", "qwen3_vl", "qwen3_5", "paligemma")))
def test_a_knockout_in_a_window_equals_a_forward_of_its_own(name):
    strongest, ways = both_ways(name, "", "image", "last")
    assert ways == [Way.RESUMED if name in WHOLE else Way.SINGLE]
    assert strongest > 1e-4, "a knockout has to show"


@pytest.mark.parametrize(("source", "target"), ROUTES[1:])
@pytest.mark.parametrize("name", quick(["llava", "gemma3", "paligemma2"], ["llava"]))
def test_every_route_equals_a_forward_of_its_own(name, source, target):
    assert both_ways(name, "", source, target)[0] > 1e-6


@pytest.mark.parametrize(("name", "padded"), [("llava", "left"), ("mllama", "right")])
def test_the_rows_of_a_padded_batch_do_not_mix(name, padded):
    for route in ROUTES[:2]:
        both_ways(name, padded, *route)


@pytest.mark.long
@pytest.mark.parametrize("padded", ["left", "right"])
@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen3_vl", "qwen3_5"])
def test_neither_do_those_of_other_families_on_any_route(name, padded):
    for route in ROUTES:
        both_ways(name, padded, *route)


def test_small_batches_give_the_same():
    both_ways("llava", "", "image", "question", rows_per_pass=20)


def test_a_row_that_would_lose_all_it_sees_keeps_it():
    lens, prompt = double("llava").lens, prompt_of("llava")
    everything = prompt.mask("all")
    knockout = Knockout(everything, everything, [1])
    change = Change(knockout, Variant((), (Hidden((1,), everything[0], everything[0]),)))
    with pytest.warns(NothingChangedWarning, match="or nothing else"):
        found, _ = Forwards(lens, Batches(None, lens.device)).replayed(prompt, 0, [change])
    plain = lens.run(prompt, logits="last").logits[0, 0]
    torch.testing.assert_close(found[0], plain, atol=1e-10, rtol=1e-10)


def test_edits_and_lost_keys_act_together_and_beside_each_other():
    from lmm_lens import AblateHeads

    lens, prompt = double("llava").lens, prompt_of("llava")
    rows, keys = prompt.mask("question"), prompt.mask("image")
    edit = Edit(2, "z", prompt.mask("last")[0], None, 1)
    hidden = Hidden((0, 1), rows[0], keys[0])
    knockout, ablation = Knockout(keys, rows, [0, 1]), AblateHeads([(2, 1)], rows="last")
    each = [
        Change(knockout, Variant((), (hidden,))),
        Change(ablation, Variant((edit,))),
        Change(knockout, Variant((edit,), (hidden,))),
    ]
    forwards = Forwards(lens, Batches(None, lens.device))
    forwards._is_checked = True  # the third is two interventions
    found, _ = forwards.replayed(prompt, 0, each)
    for logits, edits in zip(found, ([knockout], [ablation], [knockout, ablation]), strict=True):
        own = lens.run(prompt, edits, logits="last").logits[0, 0]
        torch.testing.assert_close(logits, own, atol=1e-9, rtol=1e-9)


def test_what_is_not_the_knockout_is_not_believed():
    lens, prompt = double("llava").lens, prompt_of("llava")
    rows, keys = prompt.mask("last"), prompt.mask("image")
    wrong = Change(Knockout(keys, rows, [0]), Variant((), (Hidden((1,), rows[0], keys[0]),)))
    with pytest.raises(UnfitError, match="a replayed change differs from the model's own forward"):
        Forwards(lens, Batches(None, lens.device)).replayed(prompt, 0, [wrong])
