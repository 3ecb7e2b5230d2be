"""The vision tower read and edited: known answers on every family, beside torch's own hooks and slices of weights."""

from dataclasses import dataclass

import pytest
import torch
from PIL import Image

from lmm_lens import (
    AblateHeads,
    HeadSet,
    Intervention,
    Knockout,
    Lens,
    PatchHeads,
    PatchResidual,
    Read,
    ScaleAttention,
    attention_map,
    head_effects,
    head_means,
)
from lmm_lens.adapters.towers import _linear
from lmm_lens.backends.native import interface
from lmm_lens.backends.native.tower import TowerSession
from lmm_lens.bundled import shapes
from lmm_lens.core.taps import Tap
from lmm_lens.errors import HookError, InterventionError, LensError, ModelError
from lmm_lens.interventions import PatchPattern, from_json, to_json
from lmm_lens.prompts.rows import bind_rows
from tests.support.families import EVERY, lens_of, prompt_of

SITES = ("resid_pre", "pattern", "z", "attn_out", "mlp_out", "resid_post")
WITHOUT = {
    "lfm3_vl": "no vision tower with attention heads",
    "gemma3n": "no vision tower with attention heads",
    "gemma4_unified": "no vision tower with attention heads",
    "emu3": "no vision tower with attention heads",
    "chameleon": "no vision tower with attention heads",
    "fast_vlm": "no vision tower with attention heads",
    "got_ocr2": r"runs on \(1, 8, 8, 32\): a map of rows and columns",
    "pp_chart2table": r"runs on \(1, 8, 8, 32\): a map of rows and columns",
}
"""Families whose pictures go through no sequence of tokens, and what they are told."""
MERGING = ("minicpmv4_6", "minicpmv4_7")
"""Towers that merge patches between their layers."""
BESIDE = ("unlimited_ocr", "deepseek_vl_hybrid", "granite_docling")
"""Models whose features do not all come through the tower: of a second one, or of the pixels."""
DEEPSTACK = ("qwen3_vl", "qwen3_vl_moe", "cohere_compass", "cosmos3_omni", "qwen3_omni_moe_thinker", "granite4_vision")
EARLIER = (*DEEPSTACK, "vipllava", "mllama")
"""Models that take features of earlier layers of the tower, too."""
QUICK = ("llava", "qwen2_vl", "qwen2_5_vl", "internvl", "idefics2", "llava_next", "mllama", "got_ocr2", "fast_vlm")


def marked(names):
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.long) for name in names]


@pytest.fixture(params=marked(EVERY))
def name(request):
    return request.param


@pytest.fixture
def towered(name):
    """A lens whose model has a tower; what has none says so."""
    lens = lens_of(name)
    if name in WITHOUT:
        with pytest.raises(LensError, match=WITHOUT[name]):
            lens.run(prompt_of(name), read=["vision.z"])
        return None
    return lens


def noise(name):
    """Another picture of the same size."""
    size = prompt_of(name).images[0][0].size
    pixels = torch.randint(256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return lens_of(name).prompt("What is this?", images=Image.fromarray(pixels.numpy()))


# ---------------------------------------------------------------------- known answers on every family


def test_the_support_table_says_which_have_heads(name):
    if name != "lfm3_vl":  # of the class of Qwen3-VL's adapter, with another tower
        assert lens_of(name).adapter.has_tower_heads == (name not in WITHOUT)


def test_reading_changes_nothing_and_is_what_torchs_hooks_see(name, towered):
    if towered is None:
        return
    prompt, parts = prompt_of(name), towered.adapter.tower.layers[0]
    seen = {}
    hooks = [
        parts.module.register_forward_hook(lambda module, args, out: seen.update(resid_post=first_of(out))),
        parts.attention.register_forward_hook(lambda module, args, out: seen.update(attn_out=first_of(out))),
        parts.output_projection.register_forward_pre_hook(lambda module, args: seen.update(z=args[0])),
    ]
    try:
        plain = towered.run(prompt).logits
    finally:
        for hook in hooks:
            hook.remove()
    run = towered.run(prompt, read=[Read(f"vision.{site}", layers=[0]) for site in SITES])
    assert torch.equal(run.logits, plain)
    for site, expected in seen.items():
        assert torch.equal(run.reads[f"vision.{site}", 0].reshape(expected.shape), expected), site
    pattern = run.reads["vision.pattern", 0]
    assert pattern.shape == (run.tower.n_rows, towered.vision.n_heads, run.tower.n_tokens, run.tower.n_tokens)
    torch.testing.assert_close(pattern.sum(-1), torch.ones(pattern.shape[:3]), atol=1e-5, rtol=0)
    assert ("vision.resid_pre", 0) in run.reads


def first_of(out):
    return out[0] if isinstance(out, tuple) else out


def test_a_head_set_to_zero_is_one_whose_slice_of_the_output_projection_is(name, towered):
    if towered is None:
        return
    prompt, vision = prompt_of(name), towered.vision
    head, d = vision.n_heads - 1, vision.d_head
    ablated = towered.run(prompt, [AblateHeads([(0, head)], part="vision")])
    weight = _linear(towered.adapter.tower.layers[0].output_projection).weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight[:, head * d : (head + 1) * d] = 0
        expected = towered.run(prompt).logits
        weight.copy_(before)
    torch.testing.assert_close(ablated.logits, expected, atol=1e-6, rtol=0)
    assert ablated.reports[0].edits == {0: ablated.tower.n_rows * ablated.tower.n_tokens}


def test_all_that_another_picture_put_into_the_used_layers_gives_its_run(name, towered):
    if towered is None or name in (*MERGING, *BESIDE):
        return
    prompt, other = prompt_of(name), noise(name)
    clean = towered.run(other, read=["vision.resid_post"])
    plain = towered.run(prompt).logits
    layers = range(towered.vision.n_used)
    patched = towered.run(prompt, [PatchResidual(layers, clean, rows="all", site="resid_post", part="vision")])
    same_ids = torch.equal(prompt.inputs["input_ids"], other.inputs["input_ids"])
    assert same_ids
    torch.testing.assert_close(patched.logits, clean.logits, atol=1e-6, rtol=0)
    if name not in ("molmo2", "instructblip"):  # whose tiny models hear nothing of their pictures
        assert float((plain - clean.logits).abs().max()) > 1e-3


def test_all_of_the_last_used_layer_is_all_of_the_picture(name, towered):
    """Its patches alone, where it is known which they are."""
    if towered is None or name in (*MERGING, *BESIDE, *EARLIER):
        return
    prompt, last = prompt_of(name), towered.vision.n_used - 1
    clean = towered.run(noise(name), read=[Read("vision.resid_post", layers=[last])])
    rows = "image" if "image" in clean.tower.masks else "all"
    run = towered.run(prompt, [PatchResidual([last], clean, rows, "resid_post", part="vision")])
    torch.testing.assert_close(run.logits, clean.logits, atol=1e-6, rtol=0)


def test_the_last_layer_that_counts_is_heard(name, towered):
    """What is edited there, and no earlier, reaches the answer: `n_used` is not too large."""
    if towered is None or name in (*MERGING, "molmo2", "instructblip"):
        return
    prompt, last = prompt_of(name), towered.vision.n_used - 1
    clean = towered.run(noise(name), read=[Read("vision.resid_post", layers=[last])])
    run = towered.run(prompt, [PatchResidual([last], clean, rows="all", site="resid_post", part="vision")])
    assert float((run.logits - towered.run(prompt).logits).abs().max()) > 1e-4


def test_heads_made_even_attend_evenly_to_what_their_rows_see(name, towered):
    if towered is None:
        return
    prompt = prompt_of(name)
    before = towered.run(prompt, read=[Read("vision.pattern", layers=[0], heads=[0])]).reads["vision.pattern", 0]
    edited = towered.run(
        prompt,
        [AblateHeads([(0, 0)], "uniform", part="vision")],
        [Read("vision.pattern", layers=[0], heads=[0])],
    )
    even = edited.reads["vision.pattern", 0]
    seen = before > 1e-12
    torch.testing.assert_close(even, seen / seen.sum(-1, keepdim=True), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", MERGING, indirect=True)
@pytest.mark.long
def test_a_layer_behind_a_merge_is_refused(name, towered):
    last = towered.vision.n_layers - 1
    with pytest.raises(HookError, match=r"runs on 16 tokens, the first on 64: this tower merges patches"):
        towered.run(prompt_of(name), read=[Read("vision.resid_post", layers=[last])])


# ---------------------------------------------------------------------- the same on every backend


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3", "internvl"], indirect=True)
def test_the_frameworks_see_and_do_the_same(name, backend):
    native, other = lens_of(name), lens_of(name, backend)
    prompt = prompt_of(name)
    edits = [AblateHeads([(0, 1)], part="vision"), Knockout([1, 2], [0, 3], [0], part="vision")]
    expected = native.run(prompt, edits, ["vision.pattern", "vision.z"])
    found = other.run(prompt, edits, ["vision.pattern", "vision.z"])
    assert found.reads.keys() == expected.reads.keys()
    for at, value in expected.reads.items():
        torch.testing.assert_close(found.reads[at], value, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=0)
    assert [report.edits for report in found.reports] == [report.edits for report in expected.reports]


# ---------------------------------------------------------------------- packed pictures, rows, generation


def test_packed_pictures_attend_each_to_itself():
    lens = lens_of("qwen2_vl")
    one, two = prompt_of("qwen2_vl").images[0][0], noise("qwen2_vl").images[0][0]
    both = lens.run(lens.prompt("Compare.", images=[one, two]), read=["vision.pattern"])
    alone = [lens.run(lens.prompt("What?", images=each), read=["vision.pattern"]) for each in (one, two)]
    n = alone[0].tower.n_tokens
    pattern = both.reads["vision.pattern", 1]
    assert pattern.shape[2:] == (2 * n, 2 * n)
    assert float(pattern[:, :, :n, n:].abs().max()) == 0
    assert float(pattern[:, :, n:, :n].abs().max()) == 0
    for number, run in enumerate(alone):
        own = slice(number * n, (number + 1) * n)
        torch.testing.assert_close(pattern[:, :, own, own], run.reads["vision.pattern", 1], atol=1e-6, rtol=0)


def test_an_edit_of_one_packed_picture_is_that_of_it_alone():
    lens = lens_of("qwen2_vl")
    one, two = prompt_of("qwen2_vl").images[0][0], noise("qwen2_vl").images[0][0]
    prompt = lens.prompt("Compare.", images=[one, two])
    n = lens.run(prompt, read=["vision.z"]).tower.n_tokens // 2
    uniform = AblateHeads([(0, 0)], "uniform", rows=range(n, 2 * n), part="vision")
    run = lens.run(prompt, [uniform], [Read("vision.pattern", layers=[0], heads=[0])])
    even = run.reads["vision.pattern", 0][0, 0, n:]
    torch.testing.assert_close(even[:, n:], torch.full((n, n), 1 / n), atol=1e-6, rtol=0)
    assert float(even[:, :n].abs().max()) == 0


def test_rows_are_patches_and_class_tokens(lens):
    prompt = question(lens)
    vision = lens.vision
    assert repr(vision) == (
        "Vision tower model.vision_tower.encoder.layers: 3 layers x 4 heads of 24, 3 used, 1 class token a row"
    )
    run = lens.run(
        prompt, read=[Read("vision.resid_post", layers=[0], rows="image", name="patches"), "vision.resid_post"]
    )
    whole = run.reads["vision.resid_post", 0]
    assert torch.equal(run.reads["patches", 0], whole[:, 1:])
    assert run.positions["patches"].tolist() == [list(range(1, whole.shape[1]))]
    only = lens.run(prompt, read=[Read("vision.resid_post", layers=[0], rows="class")])
    assert torch.equal(only.reads["vision.resid_post", 0], whole[:, :1])


def test_the_class_token_of_llama_4_stands_behind():
    run = lens_of("llama4").run(prompt_of("llama4"), read=[Read("vision.z", layers=[0], rows="class")])
    assert run.positions["vision.z"][0].tolist() == [run.tower.n_tokens - 1]


def test_a_generation_is_edited_at_its_prefill(lens):
    prompt = question(lens)
    edit = AblateHeads(HeadSet.all(lens.vision.n_layers, lens.vision.n_heads, [0, 1], part="vision"))
    made = lens.generate(prompt, [edit], ["vision.z"], max_new_tokens=3)
    assert made.reports[0].n_edits == 2 * lens.vision.n_heads * 37
    assert made.reads["vision.z", 2].shape == (1, 37, 4, 24)
    assert int(made.tokens[0, 0]) == int(lens.run(prompt, [edit]).logits[0, -1].argmax())


def test_heads_and_patterns_are_patched_from_another_picture(lens):
    prompt, other = question(lens), question(lens, 5)
    clean = lens.run(other, read=["vision.z", "vision.pattern"])
    every = HeadSet.all(lens.vision.n_layers, lens.vision.n_heads, part="vision")
    for patch, site in ((PatchHeads, "vision.z"), (PatchPattern, "vision.pattern")):
        run = lens.run(prompt, [patch(every, clean)], [site])
        for layer in range(lens.vision.n_layers):
            torch.testing.assert_close(run.reads[site, layer], clean.reads[site, layer], atol=1e-6, rtol=0)


def test_apply_edits_the_tower_of_whatever_runs(lens):
    prompt = question(lens)
    edit = AblateHeads([(0, 1), (1, 2)], part="vision")
    expected = lens.run(prompt, [edit]).logits
    with lens.apply(edit):
        assert torch.equal(lens.run(prompt).logits, expected)
        direct = lens.model(**prompt.inputs).logits
    torch.testing.assert_close(direct, expected, atol=1e-6, rtol=0)
    assert not torch.equal(lens.run(prompt).logits, expected)


def test_decoder_and_tower_are_edited_in_one_run(lens):
    prompt = question(lens)
    tower, decoder = AblateHeads([(0, 1)], part="vision"), AblateHeads([(2, 3)])
    run = lens.run(prompt, [decoder, tower], ["z", "vision.z"])
    assert [list(report.edits) for report in run.reports] == [[2], [0]]
    assert float(run.reads["z", 2][:, :, 3].abs().max()) == 0
    assert float(run.reads["vision.z", 0][:, :, 1].abs().max()) == 0


def test_nothing_stays_behind(lens):
    prompt = question(lens)
    plain = lens.run(prompt).logits
    hooks = hooks_in(lens)
    configs = [layer.attention.config._attn_implementation for layer in lens.adapter.tower.layers]
    with pytest.raises(ZeroDivisionError):
        lens.run(prompt, read=[Read("vision.z", reduce=lambda rows, context: 1 / 0)])
    assert torch.equal(lens.run(prompt).logits, plain)
    assert [layer.attention.config._attn_implementation for layer in lens.adapter.tower.layers] == configs
    assert hooks_in(lens) == hooks
    assert not [each for each in interface.LISTENERS.all if isinstance(each, TowerSession)]


def hooks_in(lens):
    """Those on the tower's modules; transformers leaves some of its own there."""
    parts = [module for layer in lens.adapter.tower.layers for module in layer.module.modules()]
    return [[*module._forward_hooks, *module._forward_pre_hooks] for module in parts]


# ---------------------------------------------------------------------- what is refused


def question(lens: Lens, seed: int = 3):
    example = shapes.examples(1, seed=seed)[0]
    return lens.prompt(example.question, images=example.image)


@pytest.mark.parametrize(
    ("edits", "read", "error", "message"),
    [
        ([], ["vision.residpre"], HookError, "unknown hook point 'residpre', did you mean 'resid_pre'"),
        ([], [Read("vision.z", rows="after_image")], HookError, "unknown row scope of the vision tower 'after_image'"),
        ([], [Read("vision.z", layers=[7])], HookError, "layer 7"),
        ([], [Read("vision.z", rows=[40])], HookError, r"positions \[40\] lie outside"),
        ([AblateHeads([(0, 9)], part="vision")], [], HookError, "head 9"),
        (
            [Knockout("question", "all", part="vision")],
            [],
            HookError,
            "unknown row scope of the vision tower 'question'",
        ),
    ],
)
def test_what_a_tower_does_not_have_is_refused(lens, edits, read, error, message):
    with pytest.raises(error, match=message):
        lens.run(question(lens), edits, read)


def test_a_part_that_there_is_not_and_a_mode_that_does_not_fit_are_refused(lens):
    with pytest.raises(InterventionError, match="unknown part of the model 'tower'\n  valid: decoder, vision"):
        AblateHeads([(0, 1)], part="tower")
    means = head_means(lens, [question(lens)])
    with pytest.raises(InterventionError, match="by zero or uniform, given 'mean'"):
        AblateHeads([(0, 1)], "mean", reference=means, part="vision")


def test_an_edit_behind_what_the_features_come_from_is_no_silent_no_op():
    lens = lens_of("llava")
    assert (lens.vision.n_used, lens.vision.n_layers) == (1, 2)
    with pytest.raises(
        InterventionError, match=r"layer 1 of the vision tower runs, .* leave layer 0: .*\n  edit layers 0 to 0"
    ):
        lens.run(prompt_of("llava"), [AblateHeads([(1, 0)], part="vision")])


def test_a_prompt_without_pictures_says_that_the_tower_did_not_run(lens):
    with pytest.raises(
        HookError, match=r"did not run, so nothing was read or edited in it\n  give a prompt with pictures"
    ):
        lens.run(lens.prompt("what color is it?"), [AblateHeads([(0, 1)], part="vision")])


def test_heads_of_one_part_are_not_taken_for_those_of_another(lens):
    """Also where both have as many layers and heads."""
    tower, decoder = HeadSet([(0, 1)], 6, 8, part="vision"), HeadSet([(0, 1)], 6, 8)
    assert tower != decoder
    assert AblateHeads(tower).part == tower.random_like(0).part == tower[:1].part == "vision"
    for mixed in (lambda: AblateHeads(tower, part="decoder"), lambda: AblateHeads(decoder, part="vision")):
        with pytest.raises(HookError, match=r"AblateHeads of part='\w+' takes heads of the [\w ]+, given heads of the"):
            mixed()
    with pytest.raises(HookError, match="a set of the same part takes heads of the decoder, given heads of the vision"):
        decoder | tower
    with pytest.raises(HookError, match="this experiment takes heads of the decoder"):
        head_effects(lens, question(lens), heads=tower, part="decoder")
    with pytest.raises(HookError, match="the vision tower has 3 x 4: they belong to another model"):
        attention_map(lens, question(lens), heads=tower)
    with pytest.raises(HookError, match="ScaleAttention of part='decoder' takes heads of the decoder"):
        ScaleAttention("image", heads=tower)
    back = from_json(to_json([AblateHeads(tower)]))
    assert back == [AblateHeads(tower)]


def test_hooks_made_of_interventions_are_refused(bridged):
    edit = AblateHeads([(0, 1)], part="vision")
    with pytest.raises(HookError, match=r"are not made hooks of a bridge\n  put them into lens.run_with_hooks"):
        edit.fwd_hooks(question(bridged), bridged)


def test_nan_is_found_in_the_tower(lens):
    with pytest.raises(
        ModelError, match=r"in the vision tower's activations, first at vision.resid_post of its layer 1"
    ):
        lens.run(question(lens), [NoNumber()])
    run = lens.run(question(lens), [NoNumber(of=0.0)])
    assert bool(run.logits.isfinite().all())


@dataclass(frozen=True)
class NoNumber(Intervention):
    """NaN, or another number, from layer 1 of the tower on."""

    of: float = float("nan")
    in_tower = True

    def taps(self, prompt, shape):
        return [Tap("mlp_out", 1, bind_rows("all", prompt), lambda x, context: torch.full_like(x, self.of), edits=True)]


def test_a_model_without_a_tower_has_no_vision():
    with pytest.raises(ModelError, match=r"no vision tower with attention heads was found in FastVlm.*convolutions"):
        lens_of("fast_vlm").vision  # noqa: B018
