"""Runs with hooks have the image; interventions are hooks for the plain bridge, while decoding too."""

import pytest
import torch

from lmm_lens import VAR, AblateHeads, Knockout, LensError
from lmm_lens.bundled import shapes
from lmm_lens.errors import InterventionError, PromptError
from lmm_lens.lens.bridge_calls import bridge_inputs, fwd_hooks, run_with_cache, run_with_hooks

VAR_HERE = VAR(sink_dims=(5, 77), sink_threshold=7.0, min_nonsink_ratio=0.0, min_visual_mass=0.0)
EDITS = [
    [VAR_HERE],
    [AblateHeads([(1, 4), (2, 0), (4, 2)], rows="after_image")],
    [Knockout("image", "last", layers=range(2, 5))],
    [AblateHeads([(1, 4)]), VAR_HERE, Knockout("image", "question", heads=[0, 3])],
]
TOLERANCE = 1e-5


@pytest.fixture(scope="module", autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def prompt(lens):
    asked = shapes.examples(3, seed=3)
    return lens.prompt([e.question for e in asked], images=[e.image for e in asked])


def gap(prompt, a, b):
    return float((a - b)[prompt.mask("all")].abs().max())


def test_both_runs_give_the_logits_of_the_users_model(lens, bridged, prompt):
    plain = lens.model(**prompt.inputs).logits
    assert gap(prompt, run_with_hooks(bridged, prompt), plain) < 1e-4
    assert gap(prompt, run_with_cache(bridged, prompt, names_filter="hook_embed")[0], plain) < 1e-4


def test_hooks_edit(bridged, prompt):
    def zero(z, hook):
        z[:, :, 4] = 0

    edited = run_with_hooks(bridged, prompt, fwd_hooks=[("blocks.1.attn.hook_z", zero)])
    in_text_and_image = AblateHeads([(1, 4)])
    assert gap(prompt, edited, bridged.run(prompt, [in_text_and_image]).logits) < TOLERANCE
    assert gap(prompt, edited, bridged.run(prompt).logits) > 0.1


@pytest.mark.parametrize("edits", EDITS)
def test_interventions_apply_inside_both_runs_and_the_cache_holds_what_they_left(bridged, prompt, edits):
    expected = bridged.run(prompt, edits, read=["pattern", "z"])
    logits, cache = run_with_cache(bridged, prompt, edits, names_filter=lambda n: n.endswith(("pattern", "z")))
    assert gap(prompt, logits, expected.logits) < TOLERANCE
    real = prompt.mask("all")
    for layer in range(6):
        z = expected.reads["z", layer]
        for row in range(3):
            n = int(real[row].sum())
            assert torch.allclose(
                cache["z", layer][row][real[row]], z[row][~z[row].flatten(1).isnan().any(1)][:n], atol=1e-5
            )
    assert gap(prompt, run_with_hooks(bridged, prompt, edits), expected.logits) < TOLERANCE


def test_an_enclosing_apply_reaches_them(bridged, prompt):
    edit = EDITS[1][0]
    expected = bridged.run(prompt, [edit]).logits
    with bridged.apply(edit):
        assert gap(prompt, run_with_hooks(bridged, prompt), expected) < TOLERANCE
        logits, cache = run_with_cache(bridged, prompt, names_filter="blocks.1.attn.hook_z")
    assert gap(prompt, logits, expected) < TOLERANCE
    assert not cache["z", 1][:, :, 4][prompt.mask("after_image")].any()


@pytest.mark.parametrize("edits", EDITS)
def test_hooks_on_the_plain_bridge_give_what_the_lens_gives_run_after_run(bridged, prompt, edits):
    expected = bridged.run(prompt, edits)
    hooks = fwd_hooks(bridged, prompt, edits)
    for _ in range(2):
        logits = bridged.bridge.run_with_hooks(**bridge_inputs(prompt), fwd_hooks=hooks)
        assert gap(prompt, logits, expected.logits) < TOLERANCE
    assert gap(prompt, logits, bridged.run(prompt).logits) > 10 * TOLERANCE
    for twice, once in zip(hooks.reports(), expected.reports, strict=True):
        assert twice.n_edits == 2 * once.n_edits


@pytest.mark.parametrize("edits", EDITS)
def test_hooks_go_on_while_decoding(bridged, prompt, edits):
    expected = bridged.generate(prompt, edits, min_new_tokens=6, max_new_tokens=6, logits=True)
    hooks = fwd_hooks(bridged, prompt, edits)
    for _ in range(2):  # the second prefill starts anew
        with bridged.bridge.hooks(fwd_hooks=hooks):
            out = bridged.bridge.hf_generate(
                **bridge_inputs(prompt),
                max_new_tokens=6,
                min_new_tokens=6,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        assert torch.equal(out.sequences[:, prompt.n_tokens :], expected.tokens)
        assert (torch.stack(out.logits, 1) - expected.logits).abs().max() < 1e-4


def test_hooks_after_a_run_that_was_broken_off(bridged, prompt):
    edits = EDITS[0]
    hooks = fwd_hooks(bridged, prompt, edits)
    bridged.bridge.run_with_hooks(**bridge_inputs(prompt), fwd_hooks=hooks, stop_at_layer=3)
    logits = bridged.bridge.run_with_hooks(**bridge_inputs(prompt), fwd_hooks=hooks)
    assert gap(prompt, logits, bridged.run(prompt, edits).logits) < TOLERANCE


def test_hooks_of_another_prompt_are_refused(lens, bridged, prompt):
    hooks = fwd_hooks(bridged, prompt, EDITS[1])
    asked = shapes.examples(1, seed=4)[0]
    other = lens.prompt(asked.question + " " + asked.question, images=[asked.image])
    match = f"hooks are for a prompt of {prompt.n_tokens} tokens, but the bridge ran with {other.n_tokens}"
    for _ in range(2):
        with pytest.raises(InterventionError, match=match):
            bridged.bridge.run_with_hooks(**bridge_inputs(other), fwd_hooks=hooks)
        bridged.bridge.run_with_hooks(**bridge_inputs(prompt), fwd_hooks=hooks)  # also after a run of its own prompt


def test_nothing_stays_behind(bridged, prompt):
    before = bridged.run(prompt).logits
    run_with_cache(bridged, prompt, EDITS[3])
    run_with_hooks(bridged, prompt, EDITS[3])
    assert torch.equal(bridged.run(prompt).logits, before)
    assert not any(point.fwd_hooks or point.bwd_hooks for point in bridged.bridge.hook_dict.values())


def test_gradients_flow_where_torch_lets_them(bridged, prompt):
    seen = {}
    with torch.enable_grad():
        logits = run_with_hooks(
            bridged, prompt, bwd_hooks=[("blocks.2.hook_in", lambda g, hook: seen.update(g=g[0].clone()))]
        )
        logits[:, -1].max().backward()
    assert seen["g"].any()
    bridged.bridge.zero_grad()


def test_another_backend_is_refused(lens, prompt):
    for call in (run_with_cache, run_with_hooks, lambda lens, prompt: fwd_hooks(lens, prompt, EDITS[0])):
        with pytest.raises(LensError, match="the native backend has no bridge"):
            call(lens, prompt)


def test_something_else_than_a_prompt_is_refused(bridged, prompt):
    with pytest.raises(PromptError, match=r"expected a prompt made by lens.prompt"):
        run_with_hooks(bridged, prompt.inputs["input_ids"])
    with pytest.raises(PromptError, match=r"expected a prompt made by lens.prompt"):
        fwd_hooks(bridged, prompt.inputs, EDITS[0])
