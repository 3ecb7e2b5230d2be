"""Scaled attention against loops over single rows, in fp64."""

import math

import pytest
import torch

from lmm_lens import EditPattern, HeadSet, Knockout, Lens, Read, ScaleAttention
from lmm_lens.errors import HookError, InterventionError
from lmm_lens.warnings import NothingChangedWarning
from tests.support.cases import case, close, double, edits_of
from tests.support.edited import scale
from tests.support.models import FAMILIES
from tests.support.oracle import each_row, layer_heads, spans
from tests.support.quick import quick
from tests.support.reference import Reference

NAMES = ["llava", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "gemma3", "paligemma2", "idefics3", "internvl", "llava_next"]
FEW = ("llava", "qwen3_vl", "gemma3")
NEW = 3
EXACT = 1e-6  # `generate` hands out logits in fp32


def scaled(layers, keys, rows, factor, renormalise=True, heads=None):
    """a_j becomes factor a_j; the row then sums to what it summed to."""

    def change(row, b, oldest, own):
        old = row.tolist()
        new = [a * factor if j + oldest in keys[b] else a for j, a in enumerate(old)]
        if renormalise and math.fsum(new) > 0:
            new = [a * math.fsum(old) / math.fsum(new) for a in new]
        elif renormalise:
            new = old
        for j, a in enumerate(new):
            row[j] = a

    return each_row(layers, rows, heads, change)


def who_sees(keys):
    """Which rows of which heads see any of the keys: a window may hide them."""

    def seen(pattern, context):
        return (context.columns(keys, pattern.shape[-1])[:, None, None] & context.visible()).any(-1).double()

    return seen


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("name", quick(NAMES, FEW))
def test_rows_after_the_image_look_harder_at_it_at_prefill_and_in_every_step(name, renormalise):
    family = double(name)
    roles = spans(family.inputs, NEW)
    edit = scaled(family.self_attending, roles["image"], roles["after_image"], 1.6, renormalise)
    options = {"max_new_tokens": NEW, "eos_token_id": []}
    given = ScaleAttention(factor=1.6, renormalise=renormalise)
    given = family.lens.generate(family.prompt, [given], logits=True, **options)
    reference = Reference(family.model)
    with reference.editing(pattern=edit):
        tokens, logits = reference.generate(family.inputs, NEW, eos_token_id=[])
    assert torch.equal(given.tokens, tokens)
    close(given.logits, logits, EXACT)
    seen = who_sees(family.prompt.mask("image"))
    looks = Read("pattern", family.self_attending, rows="after_image", reduce=seen, name="looks")
    plain = family.lens.generate(family.prompt, read=[looks], logits=True, **options)
    assert given.reports[0].edits == {
        layer: int(plain.reads["looks", layer].nansum()) for layer in family.self_attending
    }
    assert (given.logits - plain.logits).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen3_5"])
def test_chosen_heads_other_keys_and_less_of_them(name):
    family = double(name)
    roles = spans(family.inputs)
    keys = sorted(roles["image"][0])[:3]
    heads = [(layer, head) for layer in family.self_attending[:2] for head in (1, 3)]
    run = family.lens.run(family.prompt, [ScaleAttention(keys, "question", 0.25, heads=heads)])
    reference = Reference(family.model)
    edit = layer_heads(lambda layers, own: scaled(layers, [set(keys)], roles["question"], 0.25, heads=own), heads)
    with reference.editing(pattern=edit):
        close(run.logits, reference.run(family.inputs), EXACT)
    mask = torch.zeros_like(family.prompt.mask("image"))
    mask[:, keys] = True
    looks = Read("pattern", family.self_attending[:2], rows="question", reduce=who_sees(mask), name="looks")
    plain = family.lens.run(family.prompt, read=[looks])
    assert edits_of(run) == [sum(int(plain.reads["looks", layer][:, head].sum()) for layer, head in heads)]
    assert (run.logits - family.logits).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["llava", "paligemma2"])
def test_each_row_of_a_padded_batch_is_scaled_as_it_is_alone(name):
    family = case(name)
    alone, batch = family.pair()
    edit = [ScaleAttention(factor=2.0)]
    given = family.lens.run(family.lens.prompt(inputs=batch), edit)
    for row, inputs in enumerate(alone):
        own = family.lens.run(family.lens.prompt(inputs=inputs), edit)
        close(given.logits[row, -own.logits.shape[1] :], own.logits[0])


@pytest.mark.parametrize("name", ["llava", "gemma3"])
def test_a_factor_of_nothing_is_a_knockout(name):
    family = case(name)
    scaled_away, forbidden = ScaleAttention("image", "last", 0), Knockout("image", "last")
    given, expected = (family.lens.run(family.prompt, [edit]).logits for edit in (scaled_away, forbidden))
    assert torch.equal(given, expected)


def test_the_kernel_equals_the_softmax_of_raised_scores_where_rows_are_renormalised():
    scores = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    keys = torch.zeros(2, 6, dtype=torch.bool)
    keys[0, 1:3], keys[1, 5] = True, True
    raised = torch.where(keys[:, None, None], scores + math.log(1.7), scores).softmax(-1)
    torch.testing.assert_close(scale(scores.softmax(-1), keys, 1.7, True), raised)


def test_a_worked_row():
    row = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64).reshape(1, 1, 1, 3)
    keys = torch.tensor([[False, True, True]])
    assert scale(row, keys, 3.0, False).flatten().tolist() == pytest.approx([0.5, 0.6, 0.9])
    assert scale(row, keys, 3.0, True).flatten().tolist() == pytest.approx([0.25, 0.3, 0.45])
    everything = torch.ones(1, 3, dtype=torch.bool)
    assert torch.equal(scale(row, everything, 0.0, True), row)  # nothing is left to renormalise


def test_layers_of_cross_attention_are_scaled_as_a_whole_or_left_out():
    family = double("mllama")
    crossing = [layer for layer in family.attending if layer not in family.self_attending]
    run = family.lens.run(family.prompt, [ScaleAttention(factor=1.5, renormalise=False)])
    assert set(crossing) < set(run.reports[0].edits)
    roles = spans(family.inputs)
    own = scaled(family.self_attending, roles["image"], roles["after_image"], 1.5, False)

    def edit(layer, pattern, first):
        if layer in crossing:
            pattern[:, :, sorted(roles["after_image"][0])] *= 1.5
        return own(layer, pattern, first)

    reference = Reference(family.model)
    with reference.editing(pattern=edit):
        close(run.logits, reference.run(family.inputs), EXACT)
    kept = family.lens.run(family.prompt, [ScaleAttention(factor=1.5)])
    assert set(kept.reports[0].edits) == set(family.self_attending)
    with pytest.raises(InterventionError, match="the keys of cross-attention are no tokens"):
        family.lens.run(family.prompt, [ScaleAttention(layers=crossing)])
    with pytest.raises(InterventionError, match="the keys of cross-attention are no tokens"):
        family.lens.run(family.prompt, [ScaleAttention(heads=[(crossing[0], 0)])])


@pytest.mark.parametrize("factor", [-1, float("inf"), float("nan"), "more", True])
def test_a_factor_that_is_none_is_refused(factor):
    with pytest.raises(InterventionError, match="ScaleAttention: factor is a number, 0 or more, given"):
        ScaleAttention(factor=factor)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: ScaleAttention(factor=1), "a factor of 1 changes nothing"),
        (
            lambda: ScaleAttention(layers=[1], heads=[(1, 0)]),
            "takes layers, with all of their heads, or heads, not both",
        ),
        (lambda: ScaleAttention(heads=[]), "ScaleAttention was given no heads"),
        (lambda: ScaleAttention("video"), "ScaleAttention's source 'video' selects no token of this prompt"),
        (lambda: ScaleAttention(target="video"), "touches nothing: rows 'video'"),
        (lambda: ScaleAttention(layers=[7]), "layer 7 is out of range"),
        (lambda: ScaleAttention(heads=[(0, 9)]), "head 9 of layer 0 is out of range"),
    ],
)
def test_what_is_not_there_is_refused(make, text):
    llava = case("llava")
    with pytest.raises((InterventionError, HookError)) as caught:
        llava.lens.run(llava.prompt, [make()])
    assert text in str(caught.value)


def test_every_kernel_gives_the_same():
    """The fused kernel's linear form and the whole pattern of eager attention."""
    logits = []
    for kernel in ("sdpa", "eager"):
        model, inputs = FAMILIES["llava"]()
        model.set_attn_implementation(kernel)
        lens = Lens(model)
        logits.append(lens.run(lens.prompt(inputs=inputs), [ScaleAttention(factor=3.0)]).logits)
    close(logits[0], logits[1])


def test_its_control_scales_as_many_other_heads():
    llava = case("llava")
    heads = HeadSet([(0, 1), (1, 2)], llava.n_layers, 4)
    edit = ScaleAttention("question", "last", 0.5, heads=heads, renormalise=False)
    control = edit.control_of(3)
    assert control.heads == heads.random_like(3, disjoint="most")
    assert (control.source, control.target, control.factor, control.renormalise) == ("question", "last", 0.5, False)
    assert edits_of(llava.lens.run(llava.prompt, [control])) == edits_of(llava.lens.run(llava.prompt, [edit]))
    with pytest.raises(InterventionError, match="the control of ScaleAttention is of random heads: give heads="):
        ScaleAttention().control_of()


@pytest.mark.parametrize(
    "edit",
    [
        ScaleAttention("last", "image", 2.0),  # rows that cannot see the source
        ScaleAttention("all", "last", 1.7),  # and rows that see nothing else
        Knockout("last", "image"),
        EditPattern(lambda pattern, keys: torch.where(keys["video"], 2 * pattern, pattern)),
    ],
    ids=repr,
)
def test_an_edit_that_leaves_every_row_as_it_was_says_so(edit):
    family = case("llava")
    with pytest.warns(NothingChangedWarning, match="changed nothing"):
        run = family.lens.run(family.prompt, [edit])
    assert run.reports[0].n_edits == 0
    assert torch.equal(run.logits, family.lens.run(family.prompt).logits)


def test_only_rows_that_were_changed_are_counted():
    family = case("llava")
    image, last = spans(family.inputs)["image"][0], spans(family.inputs)["last"][0]
    rows = sorted(image)[:2] + sorted(last)
    run = family.lens.run(family.prompt, [ScaleAttention("question", rows, 2.0, layers=[1])])
    assert run.reports[0].edits == {1: 4}  # four heads of the last row, the only one that sees the question
