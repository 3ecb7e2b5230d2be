"""The hooks of the vision tower by TransformerLens's names: what they see and do is what `lens.run` reads and edits."""

import copy

import pytest
import torch

from lmm_lens import AblateHeads, HeadSet, Knockout, Lens, PatchResidual, Read
from lmm_lens.backends.native import interface
from lmm_lens.backends.transformer_lens.tower_pattern import HookedPattern
from lmm_lens.backends.transformer_lens.tower_points import POINTS
from lmm_lens.bundled import shapes
from lmm_lens.errors import HookError, InterventionError
from tests.support.evidence import picture
from tests.support.families import TOWERS, lens_of, prompt_of

QUICK = ("llava", "qwen2_5_vl", "mllama")
MERGING = ("minicpmv4_6",)
"""A tower that merges patches between its layers."""


@pytest.fixture(params=[pytest.param(name, marks=() if name in QUICK else pytest.mark.long) for name in TOWERS])
def name(request):
    return request.param


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def question(lens: Lens, seed: int = 3):
    example = shapes.examples(1, seed=seed)[0]
    return lens.prompt(example.question, images=example.image)


def without_head(head, dim):
    def zero(x, hook):
        x = x.clone()
        x.select(dim, head).zero_()
        return x

    return zero


def without_head_in_place(head, dim):
    def zero(x, hook):
        x.select(dim, head).zero_()

    return zero


# ---------------------------------------------------------------------- on every kind of tower


def test_a_cache_holds_what_a_run_reads(name):
    native, lens = lens_of(name), lens_of(name, "transformer_lens")
    prompt, names = prompt_of(name), [each for each in lens.bridge.hook_dict if each.startswith("vision.")]
    if not lens.adapter.has_tower_heads:
        assert names == []
        return
    layers = [0] if name in MERGING else range(native.vision.n_layers)
    read = {f"vision.blocks.{layer}.{point}": (site, layer) for layer in layers for site, point in POINTS.items()}
    assert set(read) <= set(names)
    run = native.run(prompt, read=[Read(f"vision.{site}", layers=layers) for site in POINTS])
    logits, cache = lens.run_with_cache(prompt, names_filter=list(read))
    assert set(read) <= set(cache.keys())
    for each, (site, layer) in read.items():
        close(cache[each], run.reads[f"vision.{site}", layer])
    close(logits, lens.run(prompt).logits)


@pytest.mark.parametrize(("point", "dim"), [("attn.hook_z", 2), ("attn.hook_pattern", 1)])
def test_a_head_set_to_zero_there_is_one_that_is_ablated(name, point, dim):
    lens = lens_of(name, "transformer_lens")
    if f"vision.blocks.0.{point}" not in lens.bridge.hook_dict:
        return
    prompt, head = prompt_of(name), lens.vision.n_heads - 1
    expected = lens_of(name).run(prompt, [AblateHeads([(0, head)], part="vision")]).logits
    for zero in (without_head, without_head_in_place):
        found = lens.run_with_hooks(prompt, fwd_hooks=[(f"vision.blocks.0.{point}", zero(head, dim))])
        close(found, expected)


# ---------------------------------------------------------------------- packed pictures


def test_packed_pictures_are_one_pattern_whose_parts_are_edited():
    lens, native = lens_of("qwen2_vl", "transformer_lens"), lens_of("qwen2_vl")
    prompt = native.prompt("Compare.", images=[picture(90, 60), picture(60, 90)])
    n = native.run(prompt, read=["vision.z"]).tower.n_tokens
    uniform = AblateHeads([(1, 0)], "uniform", rows=range(4), part="vision")
    seen = []

    def even(pattern, hook):
        seen.append(pattern.shape)
        pattern[:, 0, :4] = (pattern[:, 0, :4] > 0) / (pattern[:, 0, :4] > 0).sum(-1, keepdim=True)
        return pattern

    found = lens.run_with_hooks(prompt, fwd_hooks=[("vision.blocks.1.attn.hook_pattern", even)])
    assert seen == [(1, native.vision.n_heads, n, n)]  # once, whole
    close(found, native.run(prompt, [uniform]).logits)


def test_attention_to_another_packed_picture_is_refused():
    lens = lens_of("qwen2_vl", "transformer_lens")
    prompt = lens.prompt("Compare.", images=[picture(90, 60), picture(60, 90)])

    def everywhere(pattern, hook):
        return torch.full_like(pattern, 1 / pattern.shape[-1])

    with pytest.raises(InterventionError, match="tokens of another picture or window, which these rows cannot see"):
        lens.run_with_hooks(prompt, fwd_hooks=[("vision.blocks.0.attn.hook_pattern", everywhere)])
    assert lens._backend.tower.layers[0].attention.config._attn_implementation == "eager"
    assert not interface.LISTENERS.all
    close(lens.run_with_hooks(prompt), lens_of("qwen2_vl").run(prompt).logits)


# ---------------------------------------------------------------------- beside interventions


def test_hooks_see_what_interventions_left(bridged, lens):
    prompt = question(bridged)
    edits = [AblateHeads([(0, 1)], "uniform", part="vision"), Knockout([1, 2], [0, 3], [1], part="vision")]
    edits += [AblateHeads([(2, 0)], part="vision")]
    expected = lens.run(prompt, edits, [f"vision.{site}" for site in POINTS])
    wanted = {f"vision.blocks.{layer}.{point}": (site, layer) for layer in range(3) for site, point in POINTS.items()}
    logits, cache = bridged.run_with_cache(prompt, edits, names_filter=list(wanted))
    for each, (site, layer) in wanted.items():
        close(cache[each], expected.reads[f"vision.{site}", layer])
    close(logits, expected.logits)
    zero = ("vision.blocks.0.attn.hook_pattern", without_head(1, 1))
    close(
        bridged.run_with_hooks(prompt, edits, fwd_hooks=[zero]),
        lens.run(prompt, [*edits[1:], AblateHeads([(0, 1)], part="vision")]).logits,
    )


def test_hooks_see_what_interventions_left_of_packed_pictures():
    native, lens = lens_of("qwen2_5_vl"), lens_of("qwen2_5_vl", "transformer_lens")
    prompt, edits = prompt_of("qwen2_5_vl"), [AblateHeads([(0, 1)], "uniform", part="vision")]
    expected = native.run(prompt, edits, ["vision.pattern", "vision.z"])
    points = {"vision.pattern": "vision.blocks.0.attn.hook_pattern", "vision.z": "vision.blocks.0.attn.hook_z"}
    logits, cache = lens.run_with_cache(prompt, edits, names_filter=list(points.values()))
    for site, point in points.items():
        close(cache[point], expected.reads[site, 0])
    close(logits, expected.logits)


def test_a_run_reads_below_a_hook_that_stands(bridged, lens):
    """A hook put on the bridge for good edits what `lens.run` runs, behind what that reads."""
    prompt = question(bridged)
    bridged.bridge.add_hook("vision.blocks.1.attn.hook_z", without_head(2, 2))
    try:
        found = bridged.run(prompt, read=["vision.z"])
    finally:
        bridged.bridge.reset_hooks()
    expected = lens.run(prompt, [AblateHeads([(1, 2)], part="vision")])
    close(found.logits, expected.logits)
    close(bridged.run(prompt).logits, lens.run(prompt).logits)


def test_a_layers_stream_is_put_in_from_a_cache(bridged, lens):
    prompt, other = question(bridged), question(bridged, 5)
    name = "vision.blocks.1.hook_resid_post"
    _, cache = bridged.run_with_cache(other, names_filter=name)
    found = bridged.run_with_hooks(prompt, fwd_hooks=[(name, lambda x, hook: cache[name])])
    clean = lens.run(other, read=["vision.resid_post"])
    patch = PatchResidual([1], clean, rows="all", site="resid_post", part="vision")
    close(found, lens.run(prompt, [patch]).logits)


# ---------------------------------------------------------------------- as TransformerLens has it


def test_its_own_names_of_the_tower_reach_the_same_hooks(bridged, lens):
    """TransformerLens fires its own when the pattern has been used, so that edits are lost."""
    prompt, own = question(bridged), "vision_encoder.encoder_layers.0.attn.hook_pattern"
    hooks = bridged.bridge.hook_dict
    assert hooks[own] is hooks["vision.blocks.0.attn.hook_pattern"]
    assert "vision_encoder.encoder_layers.0.attn.hook_attn_scores" not in hooks
    found = bridged.run_with_hooks(prompt, fwd_hooks=[(own, without_head_in_place(1, 1))])
    close(found, lens.run(prompt, [AblateHeads([(0, 1)], part="vision")]).logits)


def test_gradients_reach_the_hooks(bridged, lens):
    prompt, name = question(bridged), "vision.blocks.1.attn.hook_pattern"
    seen = {}
    with torch.enable_grad():
        logits = bridged.run_with_hooks(
            prompt,
            fwd_hooks=[(name, lambda x, hook: seen.update(pattern=x))],
            bwd_hooks=[(name, lambda grad, hook: seen.update(slope=grad))],
        )
        (logits[0, -1, 3] - logits[0, -1, 5]).backward()
    bridged.bridge.zero_grad()
    step = 1e-2 * torch.randn(seen["pattern"].shape, generator=torch.Generator().manual_seed(0))

    def moved(sign):
        found = bridged.run_with_hooks(prompt, fwd_hooks=[(name, lambda x, hook: x + sign * step)])
        return found[0, -1, 3] - found[0, -1, 5]

    torch.testing.assert_close((moved(1) - moved(-1)) / 2, (seen["slope"] * step).sum(), rtol=2e-2, atol=1e-5)


def test_a_generation_is_edited_at_its_prefill(bridged, lens):
    prompt = question(bridged)
    zero = [(f"vision.blocks.{layer}.attn.hook_z", lambda x, hook: torch.zeros_like(x)) for layer in range(3)]
    with bridged.bridge.hooks(fwd_hooks=zero):
        found = bridged.bridge.hf_generate(**bridged.bridge_inputs(prompt), max_new_tokens=3, do_sample=False)
    every = AblateHeads([(layer, head) for layer in range(3) for head in range(4)], part="vision")
    made = lens.generate(prompt, [every], max_new_tokens=3)
    assert found[0, -made.tokens.shape[1] :].tolist() == made.tokens[0].tolist()


def test_nobody_who_hooks_nothing_pays(bridged, monkeypatch):
    """No pattern is computed, no attention function switched, and the logits stay the same to the last bit."""
    prompt, made = question(bridged), []
    opened = HookedPattern.open
    monkeypatch.setattr(HookedPattern, "open", lambda pattern: made.append(pattern.layer) or opened(pattern))
    plain = bridged.run_with_hooks(prompt)
    bridged.run_with_cache(prompt, names_filter=["vision.blocks.0.attn.hook_z", "blocks.0.attn.hook_pattern"])
    assert made == []
    bridged.run_with_cache(prompt, names_filter="vision.blocks.2.attn.hook_pattern")
    assert made == [2]
    assert torch.equal(bridged.run_with_hooks(prompt), plain)


def test_the_hooks_are_in_the_mode_of_their_bridge(bridged):
    """TransformerLens's tools refuse bridges of which any module is in training."""
    assert not any(module.training for module in bridged.bridge.vision.modules())


def test_a_copy_of_a_bridge_has_hooks_of_its_own(bridged):
    prompt, twin = question(bridged), copy.deepcopy(bridged.bridge)
    inputs, zero = bridged.bridge_inputs(prompt), ("vision.blocks.0.attn.hook_pattern", without_head(1, 1))
    plain = bridged.bridge(**inputs)
    edited = twin.run_with_hooks(**inputs, fwd_hooks=[zero])
    close(edited, bridged.bridge.run_with_hooks(**inputs, fwd_hooks=[zero]))
    assert float((edited - plain).abs().max()) > 0.01
    twin.add_hook(*zero)
    assert torch.equal(bridged.bridge(**inputs), plain)


# ---------------------------------------------------------------------- what is refused


def test_an_edit_behind_what_the_model_takes_is_refused():
    lens = lens_of("llava", "transformer_lens")
    prompt, last = prompt_of("llava"), "vision.blocks.1.hook_resid_post"
    assert lens.vision.n_used == 1
    with pytest.raises(InterventionError, match=r"takes the features that leave layer 0: what changes behind it"):
        lens.run_with_hooks(prompt, fwd_hooks=[(last, lambda x, hook: x * 2)])
    close(lens.run_with_hooks(prompt, fwd_hooks=[(last, lambda x, hook: x)]), lens.run(prompt).logits)


def test_an_activation_of_another_shape_is_refused(bridged):
    with pytest.raises(HookError, match=r"hook_z gave \(1, 37, 96\) in the place of \(1, 37, 4, 24\)"):
        bridged.run_with_hooks(
            question(bridged), fwd_hooks=[("vision.blocks.0.attn.hook_z", lambda x, hook: x.flatten(2))]
        )


def test_a_hook_that_is_not_there_is_an_error(bridged):
    with pytest.raises(KeyError, match=r"'vision.blocks.3.attn.hook_z' does not exist"):
        bridged.run_with_hooks(question(bridged), fwd_hooks=[("vision.blocks.3.attn.hook_z", print)])


# ---------------------------------------------------------------------- without a picture


@pytest.fixture
def blind():
    lens = Lens.demo(backend="transformer_lens")
    return lens, lens.prompt("What color is grass?")


NAMED = "vision.blocks.0.attn.hook_z"


def test_what_a_tower_was_asked_that_did_not_run_is_refused(blind):
    lens, prompt = blind
    missed = rf"^{NAMED} did not fire: the vision tower of LlavaForCond\w+ did not run\n  give a prompt with pictures"
    for hooks in ([(NAMED, lambda z, hook: z * 0)], [("blocks.0.hook_in", lambda x, hook: x), (NAMED, print)]):
        with pytest.raises(HookError, match=missed):
            lens.run_with_hooks(prompt, fwd_hooks=hooks)
    for names in (NAMED, ["blocks.0.hook_in", NAMED]):
        with pytest.raises(HookError, match=missed):
            lens.run_with_cache(prompt, names_filter=names)
    heads = HeadSet([(0, 0)], lens.vision.n_layers, lens.vision.n_heads, part="vision")
    for call in (lens.run_with_hooks, lens.run_with_cache, lens.run):
        with pytest.raises(HookError, match="did not run, so nothing was read or edited in it"):
            call(prompt, [AblateHeads(heads)])


def test_a_function_of_names_takes_what_there_is(blind):
    lens, prompt = blind
    _, cache = lens.run_with_cache(prompt, names_filter=lambda name: name in (NAMED, "blocks.0.hook_in"))
    assert list(cache.keys()) == ["blocks.0.hook_in"]
    expected = lens.run(prompt).logits
    given = lens.run_with_hooks(prompt, fwd_hooks=[(lambda name: name.startswith("vision."), lambda x, hook: x * 0)])
    torch.testing.assert_close(given, expected)
