"""Patching against hooks written by hand on the Hugging Face model, one prompt at a time and without this library.

The library runs pairs in padded batches, several patches to a forward; here every effect has a forward of its own.
"""

import pytest
import torch
from torch import Tensor

from lmm_lens.patching import activation_patching
from tests.support.by_hand import ByHand, repainted
from tests.support.cases import Case, case
from tests.support.models import BOS, joined, patches
from tests.support.reference import Reference

TOLERANCE = 2e-4  # of effects: logits are of order 1 and differ by 1e-6, and so does the gap they are divided by
RESIDUAL = ("resid_pre", "attn_out", "mlp_out", "resid_post")


class Pairs:
    """Two pairs of a family, of different length: by hand one by one, and as left-padded batches for the library."""

    def __init__(self, case: Case, side: str = "left") -> None:
        singles, clean = case.pair(side)
        corrupt_singles = [repainted(inputs, seed) for seed, inputs in enumerate(singles, 7)]
        corrupt = joined(corrupt_singles, side)
        self.hands = [ByHand(case.model, a, b) for a, b in zip(singles, corrupt_singles, strict=True)]
        self.clean, self.corrupt = (case.lens.prompt(inputs=inputs) for inputs in (clean, corrupt))
        self.answers = [hand.answers for hand in self.hands]
        self.ids = [inputs["input_ids"][0].tolist() for inputs in singles]

    def positions(self, row: int) -> dict[str, list[int]]:
        """Some spans of a single prompt, counted here."""
        ids = self.ids[row]
        return {
            "bos": [ids.index(BOS)],
            "image": patches(ids),
            "last": [len(ids) - 1],
        }


def close(given: Tensor, expected: list, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(given, torch.tensor(expected), atol=tolerance, rtol=tolerance, equal_nan=True)


# ---------------------------------------------------------------------- every family


def test_spans_of_the_residual_stream_equal_hooks_on_each_prompt_alone(family):
    pairs = Pairs(family)
    given = activation_patching(family.lens, pairs.clean, pairs.corrupt, answers=pairs.answers)
    assert given.layers == tuple(range(family.n_layers))
    names = ["bos", "image", "last"]
    columns = [given.units.index(name) for name in names]
    for row, hand in enumerate(pairs.hands):
        spans = pairs.positions(row)
        expected = [[hand.effect("resid_pre", layer, spans[name]) for name in names] for layer in given.layers]
        close(given.per_pair[row][:, columns], expected)
    close(given.clean_ld, [hand.clean_ld for hand in pairs.hands], 1e-4)
    close(given.corrupt_ld, [hand.corrupt_ld for hand in pairs.hands], 1e-4)


def test_heads_equal_hooks_on_each_prompt_alone(family):
    pairs = Pairs(family)
    given = activation_patching(family.lens, pairs.clean, pairs.corrupt, "z", "head", answers=pairs.answers)
    assert given.layers == tuple(family.attending)
    assert given.units == ("0", "1", "2", "3")
    for row, hand in enumerate(pairs.hands):
        everywhere = range(len(pairs.ids[row]))
        expected = [[hand.effect("z", layer, everywhere, head) for head in range(4)] for layer in given.layers]
        close(given.per_pair[row], expected)


# ---------------------------------------------------------------------- other sites, units, rows and batches


@pytest.mark.parametrize("rows", ["last", "after_image", "image"])
@pytest.mark.parametrize("name", ["llava", "paligemma"])
def test_heads_in_some_rows_equal_hooks_on_these_rows(name, rows):
    chosen = case(name)
    pairs = Pairs(chosen)
    given = activation_patching(chosen.lens, pairs.clean, pairs.corrupt, "z", "head", rows=rows, answers=pairs.answers)
    for row, hand in enumerate(pairs.hands):
        spans = pairs.positions(row)
        scope = {**spans, "after_image": range(max(spans["image"]) + 1, len(pairs.ids[row]))}[rows]
        close(given.per_pair[row], [[hand.effect("z", n, scope, head) for head in range(4)] for n in given.layers])


@pytest.mark.parametrize("site", [*RESIDUAL, "z"])
@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_the_other_sites_by_span_equal_hooks(name, site):
    chosen = case(name)
    pairs = Pairs(chosen)
    given = activation_patching(chosen.lens, pairs.clean, pairs.corrupt, site, answers=pairs.answers, layers=[1, 0])
    assert given.layers == (1, 0)
    for row, hand in enumerate(pairs.hands):
        expected = [[hand.effect(site, layer, pairs.positions(row)["image"])] for layer in (1, 0)]
        close(given.per_pair[row][:, [given.units.index("image")]], expected)


@pytest.mark.parametrize("site", ["resid_pre", "z"])
@pytest.mark.parametrize("name", ["llava", "llava_next", "internvl", "mistral3"])
def test_the_nth_patch_of_each_row_equals_a_hook_on_it(name, site):
    chosen = case(name)
    pairs = Pairs(chosen)
    given = activation_patching(
        chosen.lens, pairs.clean, pairs.corrupt, site, "patch", layers=[1], answers=pairs.answers
    )
    for row, hand in enumerate(pairs.hands):
        image = [p for p in range(pairs.clean.n_tokens) if pairs.clean.mask("visual")[row, p]]
        padding = pairs.clean.n_tokens - len(pairs.ids[row])
        assert len(given.units) == len(image)
        for unit in (0, 1, len(image) // 2, len(image) - 1):
            close(given.per_pair[row, 0, unit], hand.effect(site, 1, [image[unit] - padding]))


@pytest.mark.parametrize("rows", ["all", "after_image"])
@pytest.mark.parametrize("name", ["llava", "gemma3", "paligemma2", "mllama", "qwen3_5"])
def test_patterns_equal_eager_attention_with_the_clean_pattern_put_in(name, rows):
    chosen = case(name)
    reference = Reference(chosen.model)
    clean, corrupt = chosen.inputs, repainted(chosen.inputs)
    clean_logits, corrupt_logits = reference.run(clean)[0, -1], reference.run(corrupt)[0, -1]
    gap = clean_logits - corrupt_logits
    answers = int(gap.argmax()), int(gap.argmin())
    prompts = [chosen.lens.prompt(inputs=inputs) for inputs in (clean, corrupt)]
    given = activation_patching(chosen.lens, *prompts, "pattern", "head", rows=rows, answers=[answers])
    assert given.layers == tuple(chosen.attending)
    reference.run(clean)
    sources = {layer: reference.read("pattern", layer) for layer in given.layers}
    ld = lambda logits: float(logits[answers[0]] - logits[answers[1]])  # noqa: E731
    for index, layer in enumerate(given.layers):
        for head in range(4):

            def put(at: int, pattern: Tensor, first: int, layer: int = layer, head: int = head) -> Tensor:
                if at == layer:
                    scope = chosen.scopes[rows]
                    pattern[:, head, scope] = sources[layer][:, head, scope]
                return pattern

            with reference.editing(pattern=put):
                patched = reference.run(corrupt)[0, -1]
            expected = (ld(patched) - ld(corrupt_logits)) / (ld(clean_logits) - ld(corrupt_logits))
            close(given.per_pair[0, index, head], expected)


@pytest.mark.parametrize("tokens", [1, 10**6])
@pytest.mark.parametrize(("site", "by"), [("resid_pre", "span"), ("z", "head"), ("pattern", "head")])
@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_how_many_patches_share_a_forward_changes_nothing(name, site, by, tokens):
    chosen = case(name)
    pairs = Pairs(chosen)
    run = lambda n: activation_patching(  # noqa: E731
        chosen.lens, pairs.clean, pairs.corrupt, site, by, answers=pairs.answers, tokens_per_pass=n
    )
    torch.testing.assert_close(run(tokens).per_pair, run(300).per_pair, atol=TOLERANCE, rtol=0)


def test_a_batch_padded_on_the_right_gives_the_same_effects():
    chosen = case("llava")
    left, right = Pairs(chosen, "left"), Pairs(chosen, "right")
    a, b = (activation_patching(chosen.lens, p.clean, p.corrupt, answers=p.answers) for p in (left, right))
    assert a.units == b.units
    torch.testing.assert_close(a.per_pair, b.per_pair, atol=TOLERANCE, rtol=0)


def test_the_bundled_model_equals_hooks_on_every_pair_alone(lens):
    from lmm_lens.bundled import shapes

    examples = shapes.color_pairs(2, seed=4)
    prompts = [lens.prompt([e[i].question for e in examples], images=[e[i].image for e in examples]) for i in (0, 1)]
    spans = activation_patching(lens, *prompts)
    heads = activation_patching(lens, *prompts, "z", "head", rows="last")
    for row, pair in enumerate(examples):
        words = [lens.processor.tokenizer(e.answer, add_special_tokens=False)["input_ids"][0] for e in pair]
        hand = ByHand(lens.model, *(lens.prompt(e.question, images=e.image).inputs for e in pair), tuple(words))
        last = hand.clean["input_ids"].shape[1] - 1
        places = {"bos": [0], "before_image": [1], "image": list(range(2, 38)), "last": [last]}
        places["question"] = list(range(38, last))
        assert set(spans.units) == set(places)
        close(spans.per_pair[row], [[hand.effect("resid_pre", n, places[u]) for u in spans.units] for n in range(6)])
        some = [0, 1, 3]
        expected = [[hand.effect("z", n, [last], head) for head in range(8)] for n in some]
        close(heads.per_pair[row, some], expected)
