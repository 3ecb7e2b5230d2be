"""Interventions of one's own, against loops over single rows and against the library's."""

import pytest
import torch

from lmm_lens import AblateHeads, Edit, EditPattern, Knockout, Lens, ScaleAttention
from lmm_lens.core.taps import Tap
from lmm_lens.errors import HookError, InterventionError
from lmm_lens.interventions.base import Intervention
from lmm_lens.prompts.rows import bind_rows
from lmm_lens.warnings import NothingChangedWarning
from tests.support.cases import case, close, double, edits_of
from tests.support.oracle import each_row, spans
from tests.support.quick import quick
from tests.support.reference import Reference

NAMES = ["llava", "qwen2_5_vl", "gemma3", "paligemma2", "qwen3_5", "internvl"]
FEW = ("llava", "qwen2_5_vl", "gemma3")
NEW = 2


def more(pattern, keys):
    """A third more attention on the image."""
    return torch.where(keys["image"], 1.3 * pattern, pattern)


def squared(pattern, keys):
    return pattern**2


@pytest.mark.parametrize("name", quick(NAMES, FEW))
def test_rows_squared_by_hand_at_prefill_and_in_every_step(name):
    family = double(name)

    def change(row, b, oldest, own):
        row.copy_(row**2 / (row**2).sum() * row.sum())

    reference = Reference(family.model)
    rows = spans(family.inputs, NEW)["after_image"]
    with reference.editing(pattern=each_row(family.self_attending, rows, None, change)):
        tokens, logits = reference.generate(family.inputs, NEW, eos_token_id=[])
    given = family.lens.generate(
        family.prompt, [EditPattern(squared)], max_new_tokens=NEW, eos_token_id=[], logits=True
    )
    assert torch.equal(given.tokens, tokens)
    close(given.logits, logits, 1e-6)
    assert set(given.reports[0].edits) == set(family.self_attending)


@pytest.mark.parametrize("name", ["llava", "gemma3", "mllama"])
def test_a_third_more_on_the_image_is_what_scaling_gives(name):
    family = double(name)
    for renormalise in (True, False):
        given = family.lens.run(family.prompt, [EditPattern(more, renormalise=renormalise)])
        layers = family.self_attending
        expected = family.lens.run(family.prompt, [ScaleAttention(layers=layers, renormalise=renormalise)])
        close(given.logits, expected.logits, 1e-9)
        assert given.reports[0].edits == expected.reports[0].edits


def test_a_padded_batch_has_the_keys_of_each_row():
    family = case("llava")
    alone, batch = family.pair()
    given = family.lens.run(family.lens.prompt(inputs=batch), [EditPattern(more)])
    for row, inputs in enumerate(alone):
        own = family.lens.run(family.lens.prompt(inputs=inputs), [EditPattern(more)])
        close(given.logits[row, -own.logits.shape[1] :], own.logits[0])


@pytest.mark.parametrize("side", ["left", "right"])
def test_what_a_row_cannot_see_gets_nothing(side):
    """Even attention over all keys, future and padding ones too, becomes even attention over the visible ones."""
    family = case("llava")
    prompt = family.lens.prompt(inputs=family.pair(side)[1])
    heads = [(0, 1), (1, 2)]
    given = family.lens.run(prompt, [EditPattern(lambda pattern, keys: torch.ones_like(pattern), "all", heads=heads)])
    expected = family.lens.run(prompt, [AblateHeads(heads, "uniform")])
    close(given.logits[prompt.mask("all")], expected.logits[prompt.mask("all")])


def test_nothing_left_leaves_the_row_and_some_of_it_is_a_knockout():
    family = case("llava")
    with pytest.warns(NothingChangedWarning, match="its function left them as they were"):
        none = family.lens.run(family.prompt, [EditPattern(lambda pattern, keys: pattern * 0)])
    close(none.logits, family.logits)
    without = EditPattern(lambda pattern, keys: pattern * ~keys["image"], rows="last")
    close(
        family.lens.run(family.prompt, [without]).logits,
        family.lens.run(family.prompt, [Knockout("image", "last")]).logits,
    )


def test_a_function_knows_where_it_is():
    family = case("llava")
    seen = []

    def look(pattern, keys):
        context = keys.context
        seen.append((context.layer, context.heads, context.positions.tolist(), keys.visible.shape == pattern.shape))
        return pattern * torch.where(keys["image"], 1.3, 1.0)

    family.lens.run(family.prompt, [EditPattern(look, rows="last", heads=[(1, 0), (1, 3)])])
    assert seen == [(1, (0, 3), [[family.prompt.n_tokens - 1]], True)]


def test_a_function_may_work_in_place():
    family = case("llava")

    def in_place(pattern, keys):
        return pattern.mul_(torch.where(keys["image"], 1.3, 1.0))

    close(
        family.lens.run(family.prompt, [EditPattern(in_place)]).logits,
        family.lens.run(family.prompt, [EditPattern(more)]).logits,
    )


# ---------------------------------------------------------------------- rows of other activations


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen3_5", "mllama"])
def test_zeroing_heads_by_hand_is_an_ablation(name):
    family = case(name)
    own = Edit("z", lambda z, context: 0 * z, "after_image", heads=family.heads)
    given, expected = (
        family.lens.run(family.prompt, [edit]) for edit in (own, AblateHeads(family.heads, rows="after_image"))
    )
    assert torch.equal(given.logits, expected.logits)
    assert edits_of(given) == edits_of(expected)


@pytest.mark.parametrize("site", ["resid_pre", "attn_out", "mlp_out", "resid_post"])
def test_every_hook_point_is_edited_where_it_is(site):
    """Doubling the rows, against what is read there under the edit."""
    family = case("llava")
    plain = family.lens.run(family.prompt, read=[site]).reads[site, 1]
    run = family.lens.run(family.prompt, [Edit(site, lambda x, context: 2 * x, "question", [1])], read=[site])
    rows = torch.zeros(family.prompt.n_tokens, dtype=torch.bool)
    rows[sorted(spans(family.inputs)["question"][0])] = True
    close(run.reads[site, 1][0], torch.where(rows[:, None], 2 * plain[0], plain[0]))
    assert run.reports[0].edits == {1: int(rows.sum())}


def test_all_layers_are_meant_where_none_is_named():
    family = case("mllama")
    assert set(family.lens.run(family.prompt, [Edit("z", lambda z, c: 2 * z)]).reports[0].edits) == set(
        family.attending
    )
    own = family.lens.run(family.prompt, [Edit("mlp_out", lambda x, c: 2 * x)])
    assert set(own.reports[0].edits) == set(range(family.n_layers))


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: EditPattern("more"), "EditPattern takes a function (pattern, keys) -> pattern, given 'more'"),
        (lambda: EditPattern(lambda p, k: p[..., :2]), "a lambda returned torch.float32 [1, 4,"),
        (
            lambda: EditPattern(lambda p, k: None),
            "a lambda returned NoneType\n  expected attention [batch, head, query",
        ),
        (lambda: EditPattern(lambda p, k: p > 0), "a lambda returned torch.bool [1, 4,"),
        (lambda: EditPattern(lambda p, k: p / 0), "a lambda returned attention that is not finite, in layer 0"),
        (lambda: EditPattern(lambda p, k: -p), "attention below 0, which cannot be renormalised, in layer 0"),
        (lambda: EditPattern(lambda p, k: p * k["picture"]), "there are no keys 'picture'\n  there are: image, video"),
        (
            lambda: EditPattern(more, layers=[1], heads=[(1, 0)]),
            "EditPattern takes layers, with all of their heads, or",
        ),
        (lambda: EditPattern(more, layers=[7]), "layer 7 is out of range"),
        (lambda: EditPattern(more, rows="video"), "touches nothing: rows 'video'"),
        (lambda: Edit("z", None), "Edit takes a function (rows, context) -> rows, given None"),
        (lambda: Edit("pattern", more), "Edit changes no pattern: EditPattern does"),
        (lambda: Edit("patern", more), "unknown hook point 'patern'"),
        (lambda: Edit("mlp_out", more, heads=[(0, 0)]), "mlp_out has no heads to edit; give layers=..."),
        (lambda: Edit("z", lambda z, c: z[:, :1]), "a lambda returned torch.float32 [1, 1, 4,"),
        (lambda: Edit("z", lambda z, c: 3.0), "a lambda returned float\n  expected z = [1,"),
        (lambda: Edit("mlp_out", lambda x, c: x / 0), "a lambda returned mlp_out that is not finite, in layer 0"),
        (lambda: Edit("mlp_out", more, layers=[7]), "layer 7 is out of range"),
    ],
)
def test_what_is_no_edit_is_refused(make, text):
    family = case("llava")
    with pytest.raises((InterventionError, HookError)) as caught:
        family.lens.run(family.prompt, [make()])
    assert text in str(caught.value)


def test_attention_below_nothing_is_possible_where_rows_are_not_brought_back():
    family = case("llava")
    flipped = EditPattern(lambda pattern, keys: -pattern, rows="last", layers=[1], renormalise=False)
    z = family.lens.run(family.prompt, read=["z"]).reads["z", 1]
    run = family.lens.run(family.prompt, [flipped], read=["z"]).reads["z", 1]
    close(run[0, -1], -z[0, -1])


def test_they_say_what_they_do_and_are_told_apart():
    from lmm_lens.runs.checkpoint import fingerprint

    assert repr(EditPattern(more)) == "EditPattern(more, rows='after_image')"
    assert (
        repr(EditPattern(squared, "last", heads=[(1, 2)], renormalise=False))
        == "EditPattern(squared, rows='last', L1H2, renormalise=False)"
    )
    assert repr(Edit("z", lambda z, c: z, layers=[2])) == "Edit(z, a lambda, rows='all', layers=[2])"

    def by(factor):
        return Edit("z", lambda z, context: factor * z)

    assert fingerprint(by(2)) == fingerprint(by(2))
    assert len({fingerprint(x) for x in (by(2), by(3), EditPattern(more), EditPattern(squared))}) == 4


def test_what_the_documentation_calls_pieces_are_pieces():
    """The same edit as a class of one's own, by taps."""

    class Halve(Intervention):
        def taps(self, prompt, shape):
            return [Tap("z", 1, bind_rows("last", prompt), lambda z, context: z / 2, (2,), edits=True)]

    family = case("llava")
    given, expected = (
        family.lens.run(family.prompt, [edit])
        for edit in (Halve(), Edit("z", lambda z, context: z / 2, "last", heads=[(1, 2)]))
    )
    assert torch.equal(given.logits, expected.logits)
    del Intervention.kinds["Halve"]


def test_eager_and_fused_attention_are_edited_alike():
    from tests.support.models import FAMILIES

    logits = []
    for kernel in ("sdpa", "eager"):
        model, inputs = FAMILIES["llava"]()
        model.set_attn_implementation(kernel)
        lens = Lens(model)
        logits.append(lens.run(lens.prompt(inputs=inputs), [EditPattern(squared)]).logits)
    close(logits[0], logits[1])
