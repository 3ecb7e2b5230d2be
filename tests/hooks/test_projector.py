"""What the projector gives, level by level: against torch's own hooks on the decoder, on every family."""

import pytest
import torch
from PIL import Image

from lmm_lens import Lens, PatchResidual, Read
from lmm_lens.bundled import shapes
from lmm_lens.errors import HookError, InterventionError
from tests.support.families import EVERY, lens_of, prompt_of

QUICK = ("llava", "qwen3_vl", "mllama", "granite4_vision", "internvl")
LEVELS = {
    "qwen3_vl": [0, 1, 2],
    "qwen3_vl_moe": [0, 1, 2],
    "granite4_vision": [0, 1],
    "granite_docling": [0, 1],
    "cohere_compass": [0, 1],
    "cosmos3_omni": [0, 1],
    "qwen3_omni_moe_thinker": [0, 1],
    "qwen4_exp": [0],
}
BESIDE = ("gemma4", "inkling2")
"""Whose layers are given more of a picture beside the stream."""
STREAMS = ("gemma3n", "glm5_next")
"""Whose layers hand on several residual streams."""


def marked(names):
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.long) for name in names]


def noise(name):
    """Another picture of the same size."""
    size = prompt_of(name).images[0][0].size
    pixels = torch.randint(256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return lens_of(name).prompt("What is this?", images=Image.fromarray(pixels.numpy()))


@pytest.mark.parametrize("name", marked(EVERY))
def test_it_is_what_the_decoder_gets_and_all_that_it_gets_of_a_picture(name):
    lens, prompt, other = lens_of(name), prompt_of(name), noise(name)
    if name in ("mllama", *STREAMS):
        why = r"are the keys of layers \[1\]" if name == "mllama" else "several residual streams"
        with pytest.raises(HookError, match=why):
            lens.run(prompt, read=["projector"])
        return
    clean = lens.run(other, read=["projector"])
    levels = LEVELS.get(name, [0])
    assert [level for _, level in clean.reads] == levels
    visual = prompt.mask("visual")
    assert clean.reads["projector", 0].shape[:2] == (1, int(visual.sum()))
    edits = PatchResidual(levels, clean, "visual", "projector")
    patched = lens.run(prompt, [edits], ["projector"])
    for level in levels:
        torch.testing.assert_close(
            patched.reads["projector", level], clean.reads["projector", level], atol=1e-5, rtol=1e-5
        )
    if name not in BESIDE:
        torch.testing.assert_close(patched.logits, clean.logits, atol=2e-5, rtol=1e-4)
    assert patched.reports[0].n_edits == len(levels) * int(visual.sum())


def entering_and_added(lens, prompt):
    """By torch's hooks: what enters each layer at visual tokens, less what the one before left."""
    layers, given, left = [layer.module for layer in lens.adapter.layers], {}, {}
    hooks = []
    for number, layer in enumerate(layers):

        def enter(module, args, kwargs, number=number):
            given[number] = args[0] if args else kwargs["hidden_states"]

        def leave(module, args, out, number=number):
            left[number] = (out[0] if isinstance(out, tuple) else out).clone()

        hooks += [layer.register_forward_pre_hook(enter, with_kwargs=True), layer.register_forward_hook(leave)]
    with torch.no_grad():
        lens.model(**prompt.inputs)
    for hook in hooks:
        hook.remove()
    visual = prompt.mask("visual")
    return [(given[n] - (left[n - 1] if n else 0))[visual] for n in range(len(layers))]


@pytest.mark.parametrize("backend", ["native", "transformer_lens", "nnsight"])
@pytest.mark.parametrize("name", ["qwen3_vl", "llava"])
def test_its_levels_are_what_is_added_between_layers(name, backend):
    lens, prompt = lens_of(name, backend), prompt_of(name)
    expected = entering_and_added(lens_of(name), prompt)
    run = lens.run(prompt, read=["projector"])
    for level, added in enumerate(expected):
        if level in LEVELS.get(name, [0]):
            torch.testing.assert_close(run.reads["projector", level][0], added, atol=1e-5, rtol=0)
            assert float(added.abs().max()) > 1e-3
        else:
            assert float(added.abs().max()) < 1e-5
    assert torch.equal(run.logits, lens.run(prompt).logits)


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
def test_every_backend_patches_one_level_alike(backend):
    prompt, other = prompt_of("qwen3_vl"), noise("qwen3_vl")
    found = []
    for where in ("native", backend):
        lens = lens_of("qwen3_vl", where)
        clean = lens.run(other, read=["projector"])
        found.append(lens.run(prompt, [PatchResidual([1], clean, "visual", "projector")]).logits)
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=0)
    assert float((found[0] - lens_of("qwen3_vl").run(prompt).logits).abs().max()) > 1e-5


def test_granite_says_that_features_enter_again():
    """Also what asks for it elsewhere: ablating tokens where they enter would not ablate them."""
    assert lens_of("granite4_vision").shape.reinjects
    assert not lens_of("llava").shape.reinjects


@pytest.fixture(scope="module")
def prompt(lens):
    example = shapes.examples(1, seed=3)[0]
    return lens.prompt(example.question, images=example.image)


def test_rows_and_reductions(lens, prompt):
    whole = lens.run(prompt, read=["projector", Read("resid_pre", [0], rows="visual")])
    assert torch.equal(whole.reads["projector", 0], whole.reads["resid_pre", 0])
    some = [prompt.patch_at(20, 28), prompt.patch_at(40, 3)]
    read = Read("projector", rows=some, reduce=lambda x, context: x.norm(dim=-1), name="sizes")
    run = lens.run(prompt, read=[read])
    first = int(prompt.mask("visual")[0].nonzero()[0])
    expected = whole.reads["projector", 0][0, [p - first for p in sorted(some)]].norm(dim=-1)
    torch.testing.assert_close(run.reads["sizes", 0][0], expected)


def test_a_generation_reads_it_at_its_prefill(lens, prompt):
    made = lens.generate(prompt, read=["projector"], max_new_tokens=3)
    assert torch.equal(made.reads["projector", 0], lens.run(prompt, read=["projector"]).reads["projector", 0])


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (
            Read("projector", layers=[1]),
            r"levels \[1\] of the projector are not there: its features enter layers \[0\]",
        ),
        (Read("projector", heads=[1]), r"projector has no heads, so heads=\[1\] cannot be read"),
        (Read("projector", rows="question"), "rows 'question' hold other tokens than visual ones"),
        (Read("projector", rows="answer"), "rows 'answer' hold other tokens than visual ones"),
        (Read("projectr"), "unknown hook point 'projectr', did you mean 'projector'"),
    ],
)
def test_what_is_not_there_is_refused(lens, prompt, read, message):
    with pytest.raises(HookError, match=message):
        lens.run(prompt, read=[read])


def test_patches_of_it_name_no_part_and_no_other_layer(lens, prompt):
    run = lens.run(prompt, read=["projector"])
    for options in ({"part": "vision"}, {"source_layer": 3}):
        with pytest.raises(InterventionError, match="patched without part and source_layer"):
            PatchResidual([0], run, "visual", "projector", **options)
    with pytest.raises(InterventionError, match="the clean run holds no projector of layer 0"):
        lens.run(prompt, [PatchResidual([0], lens.run(prompt), "visual", "projector")])


def test_a_prompt_without_pictures_has_none(lens):
    with pytest.raises(HookError, match="rows 'all' of the read at projector select no row of this run"):
        lens.run(lens.prompt("what color is it?"), read=["projector"])


def test_its_edit_travels():
    here, away = Lens.demo(backend="nnsight"), Lens.demo(backend="nnsight", remote="local")
    example, other = shapes.examples(2, ["color"], seed=0)
    clean = here.run(here.prompt(other.question, images=other.image), read=["projector"])
    prompt = here.prompt(example.question, images=example.image)
    runs = [lens.run(prompt, [PatchResidual([0], clean, "visual", "projector")]).logits for lens in (here, away)]
    torch.testing.assert_close(runs[0], runs[1], atol=1e-4, rtol=0)
