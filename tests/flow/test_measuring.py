"""Cut routes against forwards of a reference whose scores are set to minus infinity, one row at a time, in fp64."""

import pytest
import torch

from lmm_lens import Knockout, Lens, information_flow
from lmm_lens.data import shapes
from lmm_lens.errors import ScoreError
from lmm_lens.flow.forced import forced
from tests.support.cases import Case, case, double
from tests.support.models import FAMILIES, another, joined
from tests.support.oracle import ScoreReference, forbid, spans
from tests.support.quick import quick

CAUSAL = [name for name in FAMILIES if name not in ("paligemma", "paligemma2")]
ROUTES = [("image", "last"), ("image", "question"), ("question", "last")]


def windows(n_layers, k):
    """Layers around each layer, cut at both ends, written out."""
    return [[x for x in range(n_layers) if c - k // 2 <= x <= c + (k + 1) // 2 - 1] for c in range(n_layers)]


def answer_of(family, n):
    """What the model says first: n tokens."""
    out = family.lens.generate(family.prompt, max_new_tokens=n, eos_token_id=[])
    return out.tokens[0].tolist()


def by_hand(family, source, target, layers, tokens):
    """The geometric mean of the probabilities of forced tokens, with a route cut in some layers."""
    ids, k = family.inputs["input_ids"], len(tokens) - 1
    inputs = dict(family.inputs)
    for name in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
        if name in inputs:
            kind = int(name == "attention_mask")
            new = torch.tensor([tokens[:k]]) if name == "input_ids" else torch.full((1, k), kind)
            inputs[name] = torch.cat([inputs[name], new.to(ids.dtype)], 1)
    roles = spans(family.inputs)
    predicting = {ids.shape[1] - 1 + i for i in range(k + 1)}
    rows = predicting if target == "last" else roles[target][0]
    reference = ScoreReference(family.model)
    with reference.editing(scores=forbid(layers, roles[source], [rows])):
        logits = reference.run(inputs)[0]
    logs = logits.double().log_softmax(-1)
    return float(sum(logs[ids.shape[1] - 1 + i, token] for i, token in enumerate(tokens)) / len(tokens))


@pytest.mark.parametrize("name", quick(["llava", "gemma3", "qwen3_vl", "paligemma2"], ["llava", "gemma3"]))
def test_every_point_is_what_a_forward_with_masked_scores_gives(name):
    family = double(name)
    token = answer_of(family, 1)
    flow = information_flow(family.lens, family.prompt, ROUTES, 2, n_random=0)
    for number, (source, target) in enumerate(ROUTES):
        base = by_hand(family, source, target, [], token)
        for layer, layers in enumerate(windows(family.n_layers, 2)):
            cut = by_hand(family, source, target, layers, token)
            expected = 100 * (torch.tensor(cut - base).exp() - 1)
            assert float(flow.per_prompt[0, number, layer]) == pytest.approx(float(expected), abs=1e-3)
    assert flow.base.tolist() == pytest.approx([float(torch.tensor(base).exp())], rel=1e-5)
    assert flow.values.abs().max() > 1, "a cut has to show"
    assert flow.layers == tuple(range(family.n_layers))


@pytest.mark.parametrize("name", quick(["llava", "qwen2_5_vl"], ["llava"]))
def test_of_an_answer_of_several_tokens_its_own_rows_are_cut_too(name):
    family = double(name)
    tokens = answer_of(family, 3)
    flow = information_flow(family.lens, family.prompt, ROUTES, 1, answers=[tokens], n_random=0)
    for number, (source, target) in enumerate(ROUTES):
        base = by_hand(family, source, target, [], tokens)
        for layer in range(family.n_layers):
            expected = 100 * (torch.tensor(by_hand(family, source, target, [layer], tokens) - base).exp() - 1)
            assert float(flow.per_prompt[0, number, layer]) == pytest.approx(float(expected), abs=1e-3)
    assert flow.n_tokens.tolist() == [3]
    first = information_flow(family.lens, family.prompt, ROUTES, 1, answers=[tokens], n_random=0, count="first")
    own = information_flow(family.lens, family.prompt, ROUTES, 1, n_random=0)
    assert torch.equal(first.per_prompt, own.per_prompt)
    assert not torch.equal(first.per_prompt, flow.per_prompt)


def test_pictures_of_cross_attention_are_cut_as_knockouts_cut_them():
    family = double("mllama")
    flow = information_flow(family.lens, family.prompt, [("image", "last")], 1, n_random=0)
    token = answer_of(family, 1)[0]
    base = family.lens.run(family.prompt, logits="last").logits[0, 0].log_softmax(-1)[token]
    for layer in family.attending:
        run = family.lens.run(family.prompt, [Knockout("image", "last", [layer])], logits="last")
        expected = 100 * ((run.logits[0, 0].log_softmax(-1)[token] - base).exp() - 1)
        assert float(flow.values[0, layer]) == pytest.approx(float(expected), abs=1e-4)
    assert "one forward each" in flow.how
    assert "cross-attention" in flow.how


def test_layers_without_attention_have_no_point_of_their_own():
    family = case("qwen3_5")
    flow = information_flow(family.lens, family.prompt, [("image", "last")], 1)
    for layer in range(family.n_layers):
        assert bool(flow.values[0, layer].isnan()) == (layer not in family.self_attending)


@pytest.mark.parametrize("backend", quick(["transformer_lens", "nnsight", "remote"], ["nnsight"]))
def test_every_backend_gives_the_same(backend):
    family = case("llava")
    tokens = answer_of(family, 2)
    native, given = (
        information_flow(lens, family.prompt, ROUTES[:1], 1, answers=[tokens], layers=[0, 2])
        for lens in family.lenses(backend)
    )
    torch.testing.assert_close(given.per_prompt, native.per_prompt, atol=0.05, rtol=1e-3)
    assert "one forward each" in given.how
    assert "single rows" in native.how


def test_rows_of_a_batch_are_prompts_of_their_own():
    family = double("llava")
    wide = {k: v.double() if v.is_floating_point() else v for k, v in another(family.inputs).items()}
    alone = [family.lens.prompt(inputs=inputs) for inputs in (family.inputs, wide)]
    batch = family.lens.prompt(inputs=joined([family.inputs, wide]))
    given, expected = (information_flow(family.lens, each, ROUTES, 2, n_random=0) for each in (batch, alone))
    torch.testing.assert_close(given.per_prompt, expected.per_prompt, atol=1e-4, rtol=1e-4)  # angles are fp32
    assert given.ids == expected.ids == ("prompt 0", "prompt 1")


def test_wide_windows_are_the_same_everywhere_and_are_computed_once():
    family = case("llava")
    flow = information_flow(family.lens, family.prompt, ROUTES[:1], 99)
    assert torch.equal(flow.values, flow.values[:, :1].expand_as(flow.values))


# ---------------------------------------------------------------------- which prompts count


def test_only_what_is_answered_rightly_counts_and_the_rest_is_named(lens):
    from dataclasses import replace

    samples = list(shapes(6, kinds=["color"], seed=3))
    colors = [each.answer for each in samples]
    wrong = replace(samples[1], answer="two", wrong=None)
    given = information_flow(lens, [samples[0], wrong, *samples[2:]], [("image", "last")], 3)
    right = information_flow(lens, [samples[0], *samples[2:]], [("image", "last")], 3)
    assert torch.equal(given.per_prompt, right.per_prompt)
    assert given.left_out == {wrong.id: colors[1]}
    assert given.ids == tuple(each.id for each in (samples[0], *samples[2:]))
    assert "5 prompts answered rightly, 1 left out that are not" in repr(given)


def test_an_answer_whose_later_token_is_not_said_is_left_out():
    family = case("llava")
    tokens = answer_of(family, 2)
    other = (tokens[1] + 1) % 100
    with pytest.raises(ScoreError, match="none of 1 prompts is answered rightly"):
        information_flow(family.lens, family.prompt, ROUTES, 1, answers=[[tokens[0], other]])


def test_an_answer_is_found_in_the_form_the_model_says_it(lens):
    samples = list(shapes(3, kinds=["color"], seed=3))
    by_text = information_flow(lens, samples, [("image", "last")], 3)
    prompts = [each.prompt(lens) for each in samples]
    tokens = [int(lens.run(each, logits="last").logits[0, 0].argmax()) for each in prompts]
    by_id = information_flow(lens, prompts, [("image", "last")], 3, answers=tokens)
    torch.testing.assert_close(by_id.per_prompt, by_text.per_prompt)


@pytest.mark.parametrize("name", quick(CAUSAL, ["llava", "gemma3", "mllama"]))
def test_a_forced_answer_is_what_the_model_goes_on_from(name):
    family = case(name)
    words = {"suppress_tokens": [*range(100, family.model.get_output_embeddings().weight.shape[0])]}  # and no pictures
    out = family.lens.generate(family.prompt, max_new_tokens=3, eos_token_id=[], logits=True, **words)
    longer = forced(family.lens, family.prompt, out.tokens[0, :2].tolist())
    logits = family.lens.run(longer, logits="last").logits[0, 0]
    torch.testing.assert_close(logits, out.logits[0, 2], atol=2e-5, rtol=2e-5)


def test_where_prompts_look_ahead_an_answer_is_not_forced():
    family: Case = case("paligemma")
    with pytest.raises(ScoreError, match=r"see the tokens behind them(.|\n)*count='first'"):
        information_flow(family.lens, family.prompt, ROUTES, 1, answers=[answer_of(family, 2)])
    assert information_flow(family.lens, family.prompt, ROUTES, 1, answers=[answer_of(family, 1)]).n_prompts == 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"routes": []}, "routes are pairs (source, target) of mask names"),
        ({"routes": ["image"]}, "routes are pairs (source, target) of mask names"),
        ({"routes": [("image", 3)]}, "routes are pairs (source, target) of mask names"),
        ({"routes": [("image", "last")] * 2}, "two routes have the same name: image -> last"),
        ({"routes": [("video", "last")]}, "the source of the route 'video -> last' selects no token of batch row 0"),
        ({"window": 0}, "window is a whole number of at least 1, given 0"),
        ({"n_random": -1}, "n_random is a whole number of at least 0, given -1"),
        ({"count": "some"}, "unknown count of answer tokens 'some'"),
        ({"answers": [1, 2]}, "2 answers were given for 1 prompt rows"),
        ({"answers": "no"}, "answers are a list, one a prompt row, as in answers=['no']"),
        ({"answers": 3}, "answers are a list, one a prompt row, as in answers=[3]"),
        ({"answers": []}, "0 answers were given, but there are more prompt rows"),
        ({"answers": [10**6]}, "an answer is text or tokens of 0 to"),
        ({"answers": [[]]}, "an answer is text or tokens of 0 to"),
    ],
)
def test_what_cannot_be_asked_is_refused(options, text):
    family = case("llava")
    if options.get("answers") == [1, 2]:
        options = {"answers": [answer_of(family, 1)[0], 2]}
    with pytest.raises(ScoreError) as caught:
        information_flow(family.lens, family.prompt, **options)
    assert text in str(caught.value)


def test_no_prompts_and_a_batch_with_long_answers_are_refused(lens):
    family = case("llava")
    with pytest.raises(ScoreError, match="no prompts were given"):
        information_flow(lens, [])
    batch = family.lens.prompt(inputs=family.pair()[1])
    said = family.lens.generate(batch, max_new_tokens=2, eos_token_id=[]).tokens.tolist()
    with pytest.raises(ScoreError, match="an answer of several tokens was given for a batch of 2 rows"):
        information_flow(family.lens, batch, answers=said)


def test_inside_apply_what_is_applied_stays(lens):
    sample = next(iter(shapes(1, kinds=["color"], seed=3)))
    outer = Knockout("image", "last", [1, 2])
    with lens.apply(outer):
        flow = information_flow(lens, sample.prompt(lens), [("image", "last")], 1, layers=[1, 3], n_random=0)
    assert float(flow.values[0, 0]) == pytest.approx(0, abs=1e-3)  # it is cut there already
    assert "an enclosing lens.apply(...) edits every forward" in flow.how
    assert isinstance(lens, Lens)


def test_answers_beside_samples_which_bring_theirs_are_refused(lens):
    sample = next(iter(shapes(1, kinds=["color"], seed=3)))
    with pytest.raises(ScoreError, match=f"sample {sample.id} brings its own answer, but answers were given"):
        information_flow(lens, [sample], answers=["red"])


def test_what_is_no_prompt_is_refused(lens):
    with pytest.raises(ScoreError, match=r"expected prompts made by lens\.prompt"):
        information_flow(lens, ["what color is it?"])
