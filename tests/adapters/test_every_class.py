"""Every class that transformers maps as image-text-to-text: of a family, generic or refused, as is claimed."""

import copy
from functools import cache

import pytest
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as CLASSES

from lmm_lens import AblateHeads, Lens, Read, score_heads
from lmm_lens.adapters import Generic, families
from lmm_lens.adapters.classes import GENERIC, REFUSED
from lmm_lens.errors import HookError, ModelError
from tests.support.cases import close, plain
from tests.support.classes import TINY, empty
from tests.support.evidence import picture
from tests.support.families import EVERY, lens_of
from tests.support.models.parts import IMAGE, Inputs


@cache
def tiny(name: str) -> tuple[Lens, Inputs]:
    model, inputs = TINY[name]()
    return Lens(model), inputs


@pytest.fixture(params=list(TINY))
def name(request) -> str:
    return request.param


def test_a_class_that_nobody_looked_at_fails_here():
    """Where this fails after an upgrade: look at the class, and enter it in a family or in adapters/classes.py."""
    looked_at = [*families(), *GENERIC, *REFUSED]
    assert sorted(looked_at) == sorted(CLASSES), "each once"


def test_every_class_that_is_not_refused_is_run():
    shown = {lens_of(name).adapter.config.model_type for name in EVERY}  # test_every_family.py, with real processors
    assert {*TINY, *shown} == set(CLASSES) - set(REFUSED)


def test_each_is_served_as_the_table_says(name):
    adapter = tiny(name)[0].adapter
    assert (type(adapter) is Generic) == (name in GENERIC)
    assert adapter.config.model_type == name


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_is_refused_says_why(name):
    model = empty(name)
    with pytest.raises(ModelError) as raised:
        Lens(model)
    assert str(raised.value).startswith(f"{type(model).__name__} ({name}) is {REFUSED[name]}\n")


def test_the_visual_tokens_are_those_that_the_picture_fills(name):
    lens, inputs = tiny(name)
    prompt = lens.prompt(inputs=inputs)
    ids = inputs["input_ids"]
    assert torch.equal(prompt.mask("image") | (prompt.mask("marker") & (ids == IMAGE)), ids == IMAGE)
    assert bool(prompt.mask("image").any())


def test_the_picture_is_seen(name):
    lens, inputs = tiny(name)
    other = {key: value.flip(-1) if value.is_floating_point() else value for key, value in inputs.items()}
    assert (plain(lens.model, other) - plain(lens.model, inputs)).abs().max() > 1e-4


def test_a_run_is_the_plain_forward(name):
    lens, inputs = tiny(name)
    assert torch.equal(lens.run(lens.prompt(inputs=inputs)).logits, plain(lens.model, inputs))


def test_a_head_without_its_output_changes_the_answer_as_a_plain_hook_does(name):
    lens, inputs = tiny(name)
    layer = lens.shape.self_attention[-1]
    parts = lens.adapter.layers[layer]

    def hook(module, args):
        z = args[0].clone()
        z[..., parts.d_head : 2 * parts.d_head] = 0
        return (z, *args[1:])

    handle = parts.output_projection.register_forward_pre_hook(hook)
    try:
        expected = plain(lens.model, inputs)
    finally:
        handle.remove()
    assert (expected - plain(lens.model, inputs)).abs().max() > 1e-4
    close(lens.run(lens.prompt(inputs=inputs), [AblateHeads([(layer, 1)])]).logits, expected)


def test_scores_are_sums_over_the_pattern_that_eager_attention_returns(name):
    lens, inputs = tiny(name)
    prompt = lens.prompt(inputs=inputs)
    slow = copy.deepcopy(lens.model)
    slow.set_attn_implementation("eager")
    with torch.no_grad():
        patterns = [each for each in slow(**inputs, output_attentions=True).attentions if each is not None]
    columns = prompt.mask("image")[0].nonzero().flatten()
    given = score_heads(lens, prompt).values
    for layer, pattern in zip(lens.shape.self_attention, patterns, strict=True):
        close(given[layer], pattern[0, :, -1, columns].sum(-1), 1e-4)


@pytest.mark.parametrize("name", ["aria generic", "deepseek_ocr2 generic"])
def test_a_generic_class_takes_text_and_pictures_with_its_own_processor(name):
    lens = lens_of(name)
    prompt = lens.prompt("<image> or <image>?", images=[picture(90, 60), picture(60, 80)])
    assert torch.equal(prompt.mask("image"), prompt.inputs["input_ids"] == lens.adapter.image_token_id)
    assert [(span.image, span.grid) for span in prompt.spans[0]] == [(0, None), (1, None)]
    assert torch.equal(lens.run(prompt).logits, plain(lens.model, prompt.inputs))


REFUSING = {"transformer_lens": ["glm5_next", "inkling2", "nemotron_h_omni"], "nnsight": []}
"""The classes that a backend refuses, with its reason in test_every_family.py."""
ELSEWHERE = [(name, backend) for backend, refused in REFUSING.items() for name in TINY if name not in refused]


@pytest.mark.parametrize(("name", "backend"), ELSEWHERE)
def test_other_backends_give_the_same_with_and_without_a_head(name, backend):
    lens, inputs = tiny(name)
    other = Lens(lens.model, backend=backend)
    prompt, heads = lens.prompt(inputs=inputs), [AblateHeads([(lens.shape.self_attention[-1], 1)])]
    close(other.run(prompt).logits, plain(lens.model, inputs), 1e-4)
    close(other.run(prompt, heads).logits, lens.run(prompt, heads).logits, 1e-4)


@pytest.mark.parametrize("name", ["gemma3n", "glm5_next"])
def test_a_residual_stream_of_several_streams_is_refused(name):
    lens, inputs = tiny(name)
    with pytest.raises(HookError, match=r"resid_pre of layer 1 is not \[batch, token, width\] but .*\n.*attn_out"):
        lens.run(lens.prompt(inputs=inputs), read=[Read("resid_pre", [1])])
