"""Any edit of any weight or buffer is found by the identity; undone, it is the old one again."""

import copy
from functools import cache

import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lmm_lens import Lens
from lmm_lens.errors import ModelError
from tests.support.models import FAMILIES
from tests.support.models.parts import IMAGE, TEXT, around, clip, picture

KINDS = (
    "bit",
    "signs of two",
    "swap of two",
    "data replaced",
    "in place",
    "through a view",
    "all",
    "parameter replaced",
)
NAMES = ("llava", "gemma3", "qwen2_5_vl", "mllama")


@cache
def opened(name: str, dtype: torch.dtype) -> tuple[nn.Module, Lens, dict]:
    """A model of random weights, none of them zero and no two the same, its lens and its identity."""
    model = copy.deepcopy(FAMILIES[name]()[0]).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    lens = Lens(model)
    return model, lens, lens.identity


def differing(lens: Lens, before: dict) -> list[str]:
    now = lens.identity
    assert now.keys() == before.keys()
    return [key for key in before if before[key] != now[key]]


@st.composite
def places(draw, n: int) -> tuple[int, int]:
    first = draw(st.integers(0, n - 1))
    return first, (first + draw(st.integers(1, max(1, n - 1)))) % n


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(NAMES), st.sampled_from([torch.float32, torch.bfloat16]), st.data())
def test_any_edit_of_any_weight_or_buffer_is_found(name, dtype, data):
    model, lens, before = opened(name, dtype)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    path = data.draw(st.sampled_from(sorted(tensors)))
    tensor = tensors[path]
    owner, attribute = model.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2]
    kept, kind = tensor.detach().clone(), data.draw(st.sampled_from(KINDS))
    flat = tensor.detach().view(-1)
    i, j = data.draw(places(flat.numel()))
    if kind == "bit":
        bit = data.draw(st.integers(0, 8 * flat.element_size() - 1))
        flat.view(torch.uint8)[i * flat.element_size() + bit // 8] ^= 1 << bit % 8
    elif kind == "signs of two":
        flat[[i, j]] = -flat[[i, j]]
    elif kind == "swap of two":
        flat[[i, j]] = flat[[j, i]]
    elif kind == "data replaced":
        new = kept.clone()
        new.view(-1)[i] += 1
        tensor.data = new
    elif kind == "in place":
        with torch.no_grad():
            tensor[tuple(k[0] for k in torch.unravel_index(torch.tensor([i]), tensor.shape))] += 1
    elif kind == "through a view":
        tensor.data.view(-1)[i : i + 1].fill_(float(flat[i]) + 1)
    elif kind == "all":
        tensor.data.mul_(2)
    else:
        new = kept.clone()
        new.view(-1)[i] += 1
        setattr(owner, attribute, nn.Parameter(new) if isinstance(tensor, nn.Parameter) else new)
    try:
        now = getattr(owner, attribute).detach()
        changed = not torch.equal(now.view(-1).view(torch.uint8), kept.view(-1).view(torch.uint8))
        assert differing(lens, before) == (["weights"] if changed else [])
    finally:
        tensor.data = kept
        setattr(owner, attribute, tensor)
    assert lens.identity == before


@pytest.mark.parametrize("name", NAMES)
def test_running_scoring_and_generating_change_nothing(name):
    model, inputs = FAMILIES[name]()
    lens = Lens(model)
    prompt, before = lens.prompt(inputs=inputs), lens.identity
    lens.run(prompt, read=["pattern", "z", "resid_post"])
    lens.generate(prompt, max_new_tokens=3)
    with torch.no_grad():
        model(**prompt.inputs, output_hidden_states=True)
    assert lens.identity == before


def tied(model) -> bool:
    return model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_tied_weights_count_at_both_places_and_untied_copies_of_them_are_the_same_model():
    model, _, _ = opened("gemma3", torch.float32)
    assert tied(model)
    before = Lens(model).identity
    untied = copy.deepcopy(model)
    untied.get_output_embeddings().weight = nn.Parameter(model.get_input_embeddings().weight.detach().clone())
    assert not tied(untied)
    assert Lens(untied).identity == before
    with torch.no_grad():
        untied.get_output_embeddings().weight[3, 4] += 1
    assert differing(Lens(untied), before) == ["weights"]


def test_buffers_that_are_not_saved_and_plain_tensors_of_a_module_count():
    model, lens, before = opened("llava", torch.float32)
    rotary = model.get_decoder().rotary_emb
    assert "inv_freq" in rotary._non_persistent_buffers_set
    with torch.no_grad():
        rotary.inv_freq[1] *= 1.5
    assert differing(lens, before) == ["weights"]
    with torch.no_grad():
        rotary.inv_freq[1] = rotary.original_inv_freq[1]
    assert lens.identity == before
    layer = model.get_decoder().layers[0]
    layer.offset = torch.ones(3)
    first = lens.identity
    layer.offset[2] = 2
    assert differing(lens, first) == ["weights"]
    del layer.offset
    assert lens.identity == before


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_frequencies_that_a_long_prompt_leaves_behind_are_no_other_model(kind):
    half = TEXT["hidden_size"] // TEXT["num_attention_heads"] // 2
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 20}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * half, "long_factor": [3.0] * half}
    text = {**TEXT, "max_position_embeddings": 20 if kind == "dynamic" else 80}
    config = hf.LlavaConfig(
        vision_config=clip(),
        text_config=hf.LlamaConfig(**text, rope_parameters=rope),
        image_token_index=IMAGE,
        image_seq_length=16,
    )
    model = hf.LlavaForConditionalGeneration(config).eval()
    lens, rotary = Lens(model), model.get_decoder().rotary_emb
    before, at_first = lens.identity, rotary.inv_freq.clone()
    long = {"input_ids": around(*[IMAGE] * 16, *range(5, 40)), "pixel_values": picture(1, 3, 56, 56)}
    with torch.no_grad():
        model(**long)
    assert not torch.equal(rotary.inv_freq, at_first), "the prompt left nothing behind, so nothing was tested"
    assert lens.identity == before
    with torch.no_grad():
        rotary.original_inv_freq[0] *= 2
    assert differing(lens, before) == ["weights"]


def test_a_model_without_values_is_refused():
    with torch.device("meta"):
        model = FAMILIES["llava"]()[0]
    with pytest.raises(ModelError) as caught:
        Lens(model).identity  # noqa: B018
    assert "the weights of LlavaForConditionalGeneration are on the meta device: " in str(caught.value)
    assert "has no values\n  load them, with from_pretrained(..., device_map=...)" in str(caught.value)
