"""Scores, sinks and patching grids on the nnsight backend are the native ones."""

import pytest
import torch

from lmm_lens import Lens, activation_patching, attribution_patching, exact_match, find_sinks, head_means, score_heads
from lmm_lens.bundled import shapes
from lmm_lens.errors import RemoteError
from tests.support.cases import case
from tests.support.models import FAMILIES
from tests.support.nnsight_lenses import clean, edit_of
from tests.support.planted import planted

BATCHES = ["llava", "qwen2_5_vl", "gemma3", "paligemma2", "qwen3_5"]


@pytest.fixture(scope="module")
def bundled():
    return Lens.demo(backend="nnsight")


@pytest.fixture(scope="module")
def bundled_simulated():
    return Lens.demo(backend="nnsight", remote="local")


@pytest.fixture(scope="module")
def asked(lens):
    examples = shapes.examples(4, seed=3)
    return lens.prompt([e.question for e in examples], images=[e.image for e in examples]), examples


@pytest.mark.parametrize("query", ["last", "answer"])
@pytest.mark.parametrize("metric", ["visual_mass", "visual_preference"])
def test_scores_of_every_family_are_the_native_ones(family, query, metric):
    native, given = (score_heads(each, family.prompt, metric, query).per_prompt for each in family.lenses("nnsight"))
    torch.testing.assert_close(given, native, atol=1e-5, rtol=0, equal_nan=True)
    if family.name != "mllama":  # whose keys are not visual
        assert native.nan_to_num().abs().max() > 1e-3


@pytest.mark.parametrize("query", ["last", "answer"])
@pytest.mark.parametrize("name", BATCHES)
def test_scores_of_padded_batches_are_the_native_ones(name, query):
    family = case(name)
    prompt = family.lens.prompt(inputs=family.pair("left")[1])
    native, given = (score_heads(each, prompt, query=query).per_prompt for each in family.lenses("nnsight"))
    torch.testing.assert_close(given, native, atol=1e-5, rtol=0, equal_nan=True)


@pytest.mark.parametrize("metric", ["nonsink_mass", "nonsink_ratio", "concentration", "localization"])
@pytest.mark.parametrize("query", ["last", "answer"])
def test_metrics_of_the_bundled_model_are_the_native_ones(lens, bundled, bundled_simulated, asked, metric, query):
    prompt, _ = asked
    native = score_heads(lens, prompt, metric, query).per_prompt
    assert native.nan_to_num().abs().max() > 1e-3
    for each in (bundled, bundled_simulated):
        given = score_heads(each, prompt, metric, query).per_prompt
        torch.testing.assert_close(given, native, atol=1e-5, rtol=1e-4, equal_nan=True)


@pytest.mark.parametrize("name", FAMILIES)
def test_planted_sinks_are_found(name):
    given = planted(name)
    native, mine = (find_sinks(each, given.prompt) for each in (given.lens, Lens(given.model, backend="nnsight")))
    assert native.dims
    assert mine.dims == native.dims
    assert mine.threshold == pytest.approx(native.threshold)
    for layer in range(given.n_layers):
        assert mine.positions(layer) == native.positions(layer)


def test_sinks_and_means_of_the_bundled_model_are_the_native_ones(lens, bundled, bundled_simulated, asked):
    prompt, examples = asked
    native, means = find_sinks(lens, prompt), head_means(lens, prompt)
    for each in (bundled, bundled_simulated):
        assert find_sinks(each, prompt).dims == native.dims
        mine = head_means(each, prompt)
        assert torch.equal(mine.counts, means.counts)
        for layer, values in means.values.items():
            torch.testing.assert_close(mine.values[layer], values, atol=1e-4, rtol=1e-4, equal_nan=True)
        answers = [example.answer for example in examples]
        assert torch.equal(exact_match(each, [prompt], answers), exact_match(lens, [prompt], answers))


# ---------------------------------------------------------------------- patching

GRIDS = [("resid_pre", "span"), ("z", "head"), ("pattern", "head"), ("mlp_out", "span")]


@pytest.mark.parametrize(("site", "by"), GRIDS)
@pytest.mark.parametrize("name", BATCHES)
def test_patching_grids_are_the_native_ones(name, site, by):
    family, layers = case(name), case(name).self_attending[:2]
    for method in (activation_patching, attribution_patching):
        native, given = (
            method(each, clean(name).prompt, family.prompt, site=site, by=by, layers=layers, answers=[(7, 11)])
            for each in family.lenses("nnsight")
        )
        assert given.units == native.units
        torch.testing.assert_close(given.per_pair, native.per_pair, atol=1e-3, rtol=1e-3, equal_nan=True)
        assert native.per_pair.abs().max() > 1e-3


def test_patching_grids_of_the_bundled_model_are_the_native_ones(lens, bundled, bundled_simulated):
    pairs = shapes.color_pairs(3, seed=1)
    prompts = [lens.prompt([p[i].question for p in pairs], images=[p[i].image for p in pairs]) for i in (0, 1)]
    native = activation_patching(lens, *prompts, site="z", by="head", layers=[1, 2])
    for each in (bundled, bundled_simulated):
        given = activation_patching(each, *prompts, site="z", by="head", layers=[1, 2])
        torch.testing.assert_close(given.per_pair, native.per_pair, atol=1e-3, rtol=1e-3)
    assert native.per_pair.abs().max() > 0.05


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen2_5_vl", "qwen3_5"])
@pytest.mark.parametrize("edit", ["uniform", "zero", "patch_heads", "knockout"])
def test_gradients_pass_through_edits_as_natively(name, edit):
    family = case(name)
    weight = family.model.get_input_embeddings().weight
    found = []
    for each in family.lenses("nnsight"):
        logits = each.run(family.prompt, [edit_of(name, edit)], grad=True).logits
        found.append(torch.autograd.grad(logits[0, -1, 7], weight)[0])
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-4)
    assert found[0].abs().max() > 1e-3


def test_without_grad_nothing_is_kept_for_a_backward_pass():
    llava, lens = case("llava"), case("llava").on("nnsight")
    run = lens.run(llava.prompt, read=["z", "pattern"])
    assert not run.logits.requires_grad
    assert not any(value.requires_grad for value in run.reads.values())


def test_gradients_do_not_travel():
    llava = case("llava")
    with pytest.raises(RemoteError, match="gradients do not travel: this needs a lens with remote=False"):
        case("llava").on("remote").run(llava.prompt, grad=True)
