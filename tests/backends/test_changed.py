"""A lens answers for the model as it is now, whatever its user did to it since the lens was made."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lmm_lens import AblateHeads, Lens
from lmm_lens.errors import ModelError
from tests.support.models import FAMILIES
from tests.support.naive import logits_without

BACKENDS = ("native", "nnsight", "transformer_lens")


class Added(nn.Module):
    """A layer around a linear one that adds to what it gives, as LoRA does."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer, self.in_features = base_layer, base_layer.in_features
        generator = torch.Generator().manual_seed(0)
        self.extra = nn.Parameter(torch.randn(base_layer.weight.shape, generator=generator) / 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + nn.functional.linear(x, self.extra)


def replace_parameter(model: Any) -> None:
    projection = layer_of(model).self_attn.q_proj
    projection.weight = nn.Parameter(projection.weight.detach().flip(0))


def write_into_parameter(model: Any) -> None:
    layer_of(model).mlp.down_proj.weight.data.mul_(3)


def replace_buffer(model: Any) -> None:
    rotary = model.model.language_model.rotary_emb
    rotary.inv_freq = rotary.inv_freq * 2


def put_on_hook(model: Any) -> None:
    layer_of(model).mlp.register_forward_hook(lambda module, args, output: output * -2)


def wrap_output_projection(model: Any) -> None:
    attention = layer_of(model).self_attn
    attention.o_proj = Added(attention.o_proj)


def replace_layer(model: Any) -> None:
    layers = model.model.language_model.layers
    layers[0] = type(layers[0])(model.config.text_config, 0)
    layers[0].load_state_dict({name: weight.flip(0) for name, weight in layers[1].state_dict().items()})
    layers[0].eval()


def set_scaling(model: Any) -> None:
    layer_of(model).self_attn.scaling = 1.0


def set_epsilon(model: Any) -> None:
    layer_of(model).input_layernorm.variance_epsilon = 3.0


def replace_forward(model: Any) -> None:
    module = layer_of(model).mlp
    given = module.forward
    module.forward = lambda x: given(x) * -2


def set_config(model: Any) -> None:
    model.config.vision_feature_layer = -1  # read in each forward; the models of transformers have -2


def layer_of(model: Any) -> Any:
    return model.model.language_model.layers[0]


CHANGES = {
    change.__name__: change
    for change in (
        replace_parameter,
        write_into_parameter,
        replace_buffer,
        put_on_hook,
        wrap_output_projection,
        replace_layer,
        set_scaling,
        set_epsilon,
        replace_forward,
        set_config,
    )
}
REFUSED = {("transformer_lens", "put_on_hook"): "hooks stand on model.language_model.layers.0.mlp, and a Transf"}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_was_changed_acts(backend: str, change: Callable[[Any], None]):
    model, inputs = FAMILIES["llava"]()
    lens = Lens(model, backend=backend)
    prompt = lens.prompt(inputs=inputs)
    before = lens.run(prompt).logits
    change(model)
    with torch.no_grad():
        expected = model(**inputs).logits
    assert (expected - before).abs().max() > 1e-3, "the change is none"
    refusal = REFUSED.get((backend, change.__name__))
    if refusal is not None:
        with pytest.raises(ModelError, match=refusal):
            lens.run(prompt)
        return
    torch.testing.assert_close(lens.run(prompt).logits, expected, atol=2e-5, rtol=0)
    without = lens.run(prompt, [AblateHeads([(0, 1), (1, 2)])]).logits[:, -1]
    by_hand = logits_without(Lens(model), prompt, [(0, 1), (1, 2)], torch.ones(1, prompt.n_tokens, dtype=torch.bool))
    torch.testing.assert_close(without, by_hand, atol=2e-5, rtol=0)
    assert (without - expected[:, -1]).abs().max() > 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_parts_in_training_mode_are_refused_where_it_matters(backend: str):
    model, inputs = FAMILIES["llava"]()
    lens = Lens(model, backend=backend)
    prompt = lens.prompt(inputs=inputs)
    before = lens.run(prompt).logits
    attention = layer_of(model).self_attn
    attention.train()  # nothing in it drops out
    torch.testing.assert_close(lens.run(prompt).logits, before, atol=2e-5, rtol=0)
    attention.attention_dropout = 0.5
    with pytest.raises(ModelError, match=r"layers.0.self_attn \(\w+\) is in training mode.*\n  call model.eval\(\)"):
        lens.run(prompt)
    attention.eval()
    torch.testing.assert_close(lens.run(prompt).logits, before, atol=2e-5, rtol=0)
    layer_of(model).mlp.add_module("drop", nn.Dropout(0.1))
    with pytest.raises(ModelError, match=r"layers.0.mlp.drop \(Dropout\) is in training mode"):
        lens.run(prompt)
    model.train()
    with pytest.raises(ModelError, match="the model is in training mode"):
        lens.generate(prompt, max_new_tokens=2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_another_generation_config_is_kept(backend: str):
    model, inputs = FAMILIES["llava"]()
    lens = Lens(model, backend=backend)
    prompt = lens.prompt(inputs=inputs)
    tokens = lens.generate(prompt, max_new_tokens=4, eos_token_id=[]).tokens[0].tolist()
    model.generation_config.eos_token_id = tokens[0]
    assert lens.generate(prompt, max_new_tokens=4).tokens.tolist() == [tokens[:1]]
    model.generation_config.eos_token_id = None
    assert lens.generate(prompt, max_new_tokens=4).tokens.tolist() == [tokens]


class Times:
    """A hook with a factor."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output * self.factor


@pytest.mark.parametrize("backend", ["native", "nnsight"])  # a bridge refuses them
def test_hooks_that_come_and_go_act_while_they_stand(backend: str):
    """Each is a new object where an old one may have lain."""
    model, inputs = FAMILIES["llava"]()
    lens = Lens(model, backend=backend)
    prompt = lens.prompt(inputs=inputs)
    for factor in (2.0, -1.0, 3.0, 0.0):
        handle = layer_of(model).mlp.register_forward_hook(Times(factor))
        with torch.no_grad():
            expected = model(**inputs).logits
        torch.testing.assert_close(lens.run(prompt).logits, expected, atol=2e-5, rtol=0)
        handle.remove()


def test_modules_exchanged_under_an_envoy_of_ones_own_are_refused():
    from nnsight import TransformersModel

    model, inputs = FAMILIES["llava"]()
    envoy = TransformersModel(model, task="image-text-to-text", processor=lambda *args: None)
    lens = Lens(envoy)
    prompt = lens.prompt(inputs=inputs)
    layer_of(model).self_attn.scaling = 1.0  # is seen by nnsight itself
    expected = Lens(FAMILIES["llava"]()[0])
    layer_of(expected.model).self_attn.scaling = 1.0
    torch.testing.assert_close(lens.run(prompt).logits, expected.run(prompt).logits, atol=2e-5, rtol=0)
    wrap_output_projection(model)
    with pytest.raises(ModelError, match=r"exchanged after nnsight had wrapped it.*\n  load the model anew"):
        lens.run(prompt)
