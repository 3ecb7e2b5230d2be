"""The TransformerLens backend gives what the native one gives."""

import pytest
import torch

from lmm_lens import (
    VAR,
    AblateHeads,
    AblateTokens,
    BoostAttention,
    Direction,
    Edit,
    EditPattern,
    Knockout,
    KnockoutSinks,
    Lens,
    LensError,
    PatchHeads,
    PatchPattern,
    PatchResidual,
    Read,
    ScaleAttention,
    Steer,
    activation_patching,
    attribution_patching,
    exact_match,
    find_sinks,
    head_means,
    score_heads,
)
from lmm_lens.bundled import shapes
from lmm_lens.errors import HookError
from lmm_lens.hooks.points import HOOK_POINTS

SINKS = {"sink_dims": (5, 77), "sink_threshold": 7.0}
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def prompt(lens):
    asked = shapes.examples(5, seed=3)
    return lens.prompt([e.question for e in asked], images=[e.image for e in asked])


def interventions(lens, prompt):
    other = lens.run(
        lens.prompt(list(prompt.texts), images=[row[0] for row in prompt.images][::-1]), read=[*HOOK_POINTS]
    )
    heads = [(1, 4), (2, 0), (2, 5), (4, 2)]
    return [
        AblateHeads(heads),
        AblateHeads(heads, rows="after_image"),
        AblateHeads(heads, "mean", reference=head_means(lens, prompt)),
        AblateHeads(heads, "resample", reference=other),
        AblateHeads(heads, "uniform", rows="last"),
        AblateHeads(heads, "uniform_noncausal"),
        VAR(**SINKS, min_nonsink_ratio=0.0, min_visual_mass=0.0),
        VAR(**SINKS, control=1),
        Knockout("image", "last", layers=range(2, 5)),
        Knockout("image", "question", heads=[0, 3]),
        KnockoutSinks(**SINKS),
        AblateTokens(prompt.positions_in_box((0, 0, 16, 16))),
        PatchHeads(heads, other),
        PatchResidual([2], other, rows="image"),
        PatchResidual([3], other, rows="last", site="mlp_out"),
        PatchPattern(heads, other),
        BoostAttention(),
        ScaleAttention("image", factor=2.0),
        ScaleAttention("text", "last", 0.5, heads=heads, renormalise=False),
        PatchResidual([1], other, source_layer=4),
        Steer(Direction(torch.ones(2, lens.shape.d_model), (1, 3)), rows="after_image"),
        EditPattern(lambda pattern, keys: pattern**2),
        Edit("mlp_out", lambda x, context: 0.5 * x, "last"),
    ]


@pytest.mark.parametrize("index", range(23))
def test_every_intervention_gives_the_logits_of_the_native_backend(lens, bridged, prompt, index):
    edit = interventions(lens, prompt)[index]
    native, bridge = (each.generate(prompt, [edit], max_new_tokens=5, logits=True) for each in (lens, bridged))
    assert torch.equal(native.tokens, bridge.tokens)
    assert (native.logits - bridge.logits).abs().max() < TOLERANCE
    plain = lens.generate(prompt, max_new_tokens=5, logits=True).logits
    assert (native.logits - plain).abs().max() > 10 * TOLERANCE, "the edit has no effect to compare"
    assert native.reports[0].edits == bridge.reports[0].edits


def test_without_an_intervention_it_is_the_plain_model(lens, bridged, prompt):
    real = prompt.mask("all")
    with torch.no_grad():
        plain = lens.model(**prompt.inputs).logits
    assert (bridged.run(prompt).logits - plain)[real].abs().max() < 1e-5 * plain.abs().max()


@pytest.mark.parametrize("site", HOOK_POINTS)
def test_every_hook_point_reads_the_same(lens, bridged, prompt, site):
    native, bridge = (each.run(prompt, read=[Read(site, rows="after_image")]) for each in (lens, bridged))
    for key, value in native.reads.items():
        assert torch.equal(value.isnan(), bridge.reads[key].isnan())
        assert torch.allclose(value.nan_to_num(), bridge.reads[key].nan_to_num(), atol=2e-5), key


@pytest.mark.parametrize("query", ["last", "answer"])
def test_scores_are_the_same(lens, bridged, prompt, query):
    native, bridge = (score_heads(each, prompt, "nonsink_mass", query) for each in (lens, bridged))
    assert torch.allclose(native.per_prompt, bridge.per_prompt, atol=1e-5)


def test_experiments_run_on_it(lens, bridged, prompt):
    pairs = shapes.color_pairs(3, seed=1)
    clean, corrupt = (lens.prompt([p[i].question for p in pairs], images=[p[i].image for p in pairs]) for i in (0, 1))
    for method in (activation_patching, attribution_patching):
        native, bridge = (method(each, clean, corrupt, site="z", by="head", layers=[1, 2]) for each in (lens, bridged))
        assert torch.allclose(native.per_pair, bridge.per_pair, atol=1e-3)
    assert find_sinks(bridged, prompt).dims == find_sinks(lens, prompt).dims
    answers = [example.answer for example in shapes.examples(5, seed=3)]
    assert torch.equal(exact_match(bridged, [prompt], answers), exact_match(lens, [prompt], answers))


def test_the_users_model_is_not_touched(prompt):
    lens = Lens.demo()
    types = [type(module) for module in lens.model.modules()]
    bridged = Lens(lens.model, lens.processor, backend="transformer_lens")
    bridged.run(prompt, [AblateHeads([(1, 4)])])
    assert [type(module) for module in lens.model.modules()] == types
    assert lens.model.config.text_config._attn_implementation == "sdpa"
    weights = {id(p) for p in lens.model.parameters()}
    assert {p.data_ptr() for p in lens.model.parameters()} >= {
        p.data_ptr() for p in bridged.bridge.original_model.parameters() if id(p) in weights
    }


def test_apply_reaches_the_bridge(bridged, prompt):
    edit = AblateHeads([(1, 4), (3, 4)])
    with bridged.apply(edit):
        inside = bridged.run(prompt).logits
    assert torch.equal(inside, bridged.run(prompt, [edit]).logits)
    assert not torch.equal(inside, bridged.run(prompt).logits)


def test_the_native_backend_has_no_bridge(lens):
    with pytest.raises(
        LensError, match=r"the native backend has no bridge: use Lens\(\.\.\., backend=\"transformer_lens\"\)"
    ):
        _ = lens.bridge


def test_the_first_prompt_with_a_picture_checks_once_that_edits_land(monkeypatch, prompt):
    checked = []
    monkeypatch.setattr(
        "lmm_lens.backends.transformer_lens.backend.check_edits_land", lambda bridge, inputs: checked.append(bridge)
    )
    lens = Lens.demo(backend="transformer_lens")
    lens.run(lens.prompt("what is two plus two?"))
    assert not checked
    lens.run(prompt)
    lens.generate(prompt, max_new_tokens=2)
    assert checked == [lens.bridge]


def test_a_bridge_whose_edits_are_lost_is_refused(monkeypatch, prompt):
    """As TransformerLens's own bridges of Qwen2.5-VL and others are: the hook fires, and its edit goes nowhere."""
    lens = Lens.demo(backend="transformer_lens")
    hook = lens.bridge.hook_dict["blocks.2.attn.hook_pattern"]
    call = hook._call_impl  # torch calls forward and hooks in here
    monkeypatch.setattr(hook, "_call_impl", lambda x: (call(x.clone()), x)[1])
    with pytest.raises(HookError, match=r"hook_pattern") as caught:
        lens.run(prompt)
    assert "2" in str(caught.value)
