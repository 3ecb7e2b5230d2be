"""Attribution patching against finite differences, and against true patching where the model is as good as linear."""

import copy
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from lmm_lens import Lens
from lmm_lens.errors import ModelError
from lmm_lens.patching import activation_patching, attribution_patching
from tests.support.by_hand import ByHand, hooked, repainted
from tests.support.cases import case, hooks_of_ours
from tests.support.color_pairs import color_batch
from tests.support.models import IMAGE
from tests.support.reference import Reference, attention_of

FAMILIES = ("llava", "gemma3", "qwen3_vl", "mllama", "paligemma2")
STEP = 0.01  # of the way to the clean activation; transformers' norms round to fp32 whatever the model's precision, so
# that a smaller step would measure the rounding
CLOSE = {"rel": 1e-3, "abs": 1e-4}  # error of central differences at that step


def doubled(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}


@cache
def exact(name: str, near: float | None = None) -> SimpleNamespace:
    """A family in fp64, and a pair of prompts; with `near` their pictures differ by that little."""
    chosen = case(name)
    model = copy.deepcopy(chosen.model).double()
    lens = Lens(model)
    clean, corrupt = doubled(chosen.inputs), doubled(repainted(chosen.inputs))
    if near is not None:
        corrupt = {
            key: clean[key] + near * (value - clean[key]) if value.is_floating_point() else value
            for key, value in corrupt.items()
        }
    prompts = [lens.prompt(inputs=inputs) for inputs in (clean, corrupt)]
    hand = ByHand(model, clean, corrupt)
    scopes, attending = chosen.scopes, chosen.attending
    return SimpleNamespace(
        lens=lens, prompts=prompts, hand=hand, answers=[hand.answers], scopes=scopes, attending=attending
    )


def slope(hand: ByHand, site: str, layer: int, positions: list[int], head: int | None = None) -> float:
    """The derivative of the effect on the way from the corrupt to the clean activation, by central differences."""
    clean, columns = hand.source(site, layer), slice(None)
    if head is not None:
        size = attention_of(hand.model.get_decoder().layers[layer]).head_dim
        columns = slice(head * size, (head + 1) * size)

    def at(share: float) -> float:
        def change(x: Tensor) -> Tensor:
            x = x.clone()
            x[:, positions, columns] += share * (clean - x)[:, positions, columns]
            return x

        with hooked(hand.model, site, layer, change):
            return hand.ld(hand.logits(hand.corrupt))

    return (at(STEP) - at(-STEP)) / (2 * STEP) / (hand.clean_ld - hand.corrupt_ld)


@pytest.mark.parametrize("rows", ["all", "last"])
@pytest.mark.parametrize("name", FAMILIES)
def test_heads_equal_finite_differences(name, rows):
    it = exact(name)
    given = attribution_patching(it.lens, *it.prompts, rows=rows, answers=it.answers)
    assert (given.method, given.site, given.by, given.rows) == ("attribution", "z", "head", rows)
    assert given.layers == tuple(it.attending)
    for index, layer in enumerate(given.layers):
        for head in (0, 3):
            expected = slope(it.hand, "z", layer, it.scopes[rows], head)
            assert float(given.values[index, head]) == pytest.approx(expected, **CLOSE)


@pytest.mark.parametrize("site", ["resid_pre", "attn_out", "mlp_out", "resid_post", "z"])
@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_spans_equal_finite_differences(name, site):
    it = exact(name)
    given = attribution_patching(it.lens, *it.prompts, site, "span", answers=it.answers)
    ids = it.hand.clean["input_ids"][0].tolist()
    places = {"image": [i for i, token in enumerate(ids) if token == IMAGE], "last": it.scopes["last"]}
    for layer in given.layers:
        for span, positions in places.items():
            expected = slope(it.hand, site, layer, positions)
            assert float(given.values[layer, given.units.index(span)]) == pytest.approx(expected, **CLOSE)


def test_patches_equal_finite_differences_and_add_up_to_the_image():
    it = exact("llava")
    given, spans = (
        attribution_patching(it.lens, *it.prompts, "resid_pre", by, answers=it.answers) for by in ("patch", "span")
    )
    for patch in (0, 7, 15):
        assert float(given.values[1, patch]) == pytest.approx(slope(it.hand, "resid_pre", 1, [5 + patch]), **CLOSE)
    torch.testing.assert_close(given.values.sum(1), spans.values[:, spans.units.index("image")])


@pytest.mark.parametrize("name", ["llava", "gemma3", "paligemma2"])
def test_patterns_equal_finite_differences_in_eager_attention(name):
    it = exact(name)
    given = attribution_patching(it.lens, *it.prompts, "pattern", "head", answers=it.answers)
    reference = Reference(it.hand.model)
    reference.run(it.hand.clean)
    clean = {layer: reference.read("pattern", layer) for layer in given.layers}

    def at(layer: int, head: int, share: float) -> float:
        def change(here: int, pattern: Tensor, first: int) -> Tensor:
            if here == layer:
                pattern[:, head] += share * (clean[layer] - pattern)[:, head]
            return pattern

        with reference.editing(pattern=change):
            return it.hand.ld(reference.run(it.hand.corrupt)[0, -1])

    for index, layer in enumerate(given.layers):
        for head in (1, 2):
            rise = (at(layer, head, STEP) - at(layer, head, -STEP)) / (2 * STEP)
            expected = rise / (it.hand.clean_ld - it.hand.corrupt_ld)
            assert float(given.values[index, head]) == pytest.approx(expected, **CLOSE)


@pytest.mark.parametrize(
    ("site", "by"), [("z", "head"), ("pattern", "head"), ("resid_pre", "span"), ("mlp_out", "patch")]
)
@pytest.mark.parametrize("name", ["llava", "gemma3"])
def test_for_pictures_that_hardly_differ_it_is_the_true_effect(name, site, by):
    it = exact(name, near=3e-3)
    true, estimate = (
        run(it.lens, *it.prompts, site, by, answers=it.answers) for run in (activation_patching, attribution_patching)
    )
    torch.testing.assert_close(estimate.per_pair, true.per_pair, atol=0.01, rtol=0.01)
    assert estimate.layers == true.layers
    assert estimate.units == true.units


def test_what_leaves_a_layer_is_what_enters_the_next():
    it = exact("llava")
    before, after = (
        attribution_patching(it.lens, *it.prompts, site, "span", answers=it.answers).values
        for site in ("resid_pre", "resid_post")
    )
    torch.testing.assert_close(before[1:], after[:-1])


# ---------------------------------------------------------------------- on the bundled model


@pytest.mark.parametrize("rows", ["all", "last"])
def test_it_ranks_heads_as_true_patching_does(lens, rows):
    asked = color_batch(lens)
    true, estimate = (
        run(lens, asked.clean, asked.corrupt, "z", "head", rows=rows)
        for run in (activation_patching, attribution_patching)
    )
    assert estimate.rank_correlation(true) > 0.8
    assert set(estimate.top(2)) == set(true.top(2))


def test_a_left_padded_batch_equals_its_prompts_alone(lens):
    asked = color_batch(lens)
    examples = asked.examples[:3]
    questions = [a.question for a, _ in examples]
    questions[0] = questions[0].replace("what", "what what")
    answers = asked.answers[:3]
    whole = [lens.prompt(questions, images=[pair[i].image for pair in examples]) for i in (0, 1)]
    assert bool(whole[0].mask("pad").any())
    for site, by in (("z", "head"), ("resid_pre", "span"), ("pattern", "head")):
        given = attribution_patching(lens, *whole, site, by, answers=answers)
        for row, (question, pair) in enumerate(zip(questions, examples, strict=True)):
            single = [lens.prompt(question, images=example.image) for example in pair]
            alone = attribution_patching(lens, *single, site, by, answers=[answers[row]])
            torch.testing.assert_close(given.per_pair[row], alone.per_pair[0], atol=2e-4, rtol=1e-3)


def test_the_users_model_keeps_its_parameters_as_they_were(lens):
    model = copy.deepcopy(lens.model)
    names = [name for name, _ in model.named_parameters()]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names[::2])
    asked = color_batch(lens)
    copied = Lens(model, lens.processor)
    before = copied.run(asked.clean).logits
    attribution_patching(copied, asked.clean, asked.corrupt)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == names[::2]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(copied.run(asked.clean).logits, before)
    assert hooks_of_ours(model) == []
    model.train()
    with pytest.raises(ModelError):
        attribution_patching(copied, asked.clean, asked.corrupt)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == names[::2]


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_switched_off(lens, context):
    asked = color_batch(lens)
    expected = attribution_patching(lens, asked.clean, asked.corrupt, layers=[3])
    with context():
        given = attribution_patching(lens, asked.clean, asked.corrupt, layers=[3])
    assert torch.equal(given.per_pair, expected.per_pair)
    assert not given.per_pair.requires_grad
