"""Every family as a bridge: nothing changes without hooks, every edit does what a change of the model does."""

import copy
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens import ActivationCache

from lmm_lens.backends.transformer_lens import bridge_of
from lmm_lens.backends.transformer_lens.selfcheck import check_edits_land
from lmm_lens.errors import HookError
from tests.support.cases import Case, case, close, plain
from tests.support.decoders import DECODERS
from tests.support.models import FAMILIES
from tests.support.reference import Reference, attention_of, without_heads

LOOSE = 2e-5  # logits of order 1 behind four residual streams or experts


class Bridged(Case):
    """A tiny model, its bridge, and eager copies of it to compare with."""

    def __init__(self, name: str) -> None:
        if name in FAMILIES:
            self.__dict__.update(case(name).__dict__)
        else:
            super().__init__(name, *DECODERS[name]())
        self.bridge = bridge_of(self.model)
        self.eager = copy.deepcopy(self.model)
        self.eager.set_attn_implementation("eager")
        self.expected = plain(self.eager, self.inputs)
        self.layer = self.attending[-1]

    def run(self, *hooks: tuple[str, Callable[..., Any]]) -> Tensor:
        inputs = dict(self.inputs)
        with torch.no_grad():
            return self.bridge.run_with_hooks(inputs.pop("input_ids"), fwd_hooks=list(hooks), **inputs)

    def cache(self, *sites: str) -> ActivationCache:
        inputs = dict(self.inputs)
        with torch.no_grad():
            names = partial(_ends_with, sites)
            return self.bridge.run_with_cache(inputs.pop("input_ids"), names_filter=names, **inputs)[1]

    def edited(self, site: str, edit: Callable[[Tensor], Tensor]) -> Tensor:
        """Logits under an edit of the last attending layer; returned and in place must be the same."""
        name = f"blocks.{self.layer}.{site}"
        returned = self.run((name, lambda x, hook: edit(x.clone())))
        in_place = self.run((name, lambda x, hook: _write(x, edit)))
        close(in_place, returned)
        assert (returned - self.expected).abs().max() > 1e-4
        return returned

    def changed(self, change: Callable[[Any], None]) -> Tensor:
        """Logits of an eager copy whose last attending layer was changed by hand."""
        model = copy.deepcopy(self.eager)
        change(model.get_decoder().layers[self.layer])
        return plain(model, self.inputs)


def _ends_with(sites: tuple[str, ...], name: str) -> bool:
    return name.startswith("blocks.") and name.split(".", 2)[-1] in sites


def _write(x: Tensor, edit: Callable[[Tensor], Tensor]) -> None:
    x.copy_(edit(x.clone()))


bridged = cache(Bridged)


@pytest.fixture(params=[*FAMILIES, *DECODERS])
def each(request: pytest.FixtureRequest) -> Bridged:
    return bridged(request.param)


def test_without_hooks_the_logits_are_those_of_hugging_face(each):
    close(each.run(), each.expected)


def test_the_cached_patterns_are_the_attentions_that_hugging_face_gives(each):
    with torch.no_grad():
        attentions = each.eager(**each.inputs, output_attentions=True).attentions
    cached = each.cache("attn.hook_pattern")
    patterns = [cached[f"blocks.{layer}.attn.hook_pattern"] for layer in each.attending]
    assert len(patterns) == len(attentions)
    for ours, theirs in zip(patterns, attentions, strict=True):
        close(ours, theirs)


def test_the_cached_residual_stream_is_what_enters_and_leaves_each_layer(each):
    cached = each.cache("hook_in", "hook_out", "attn.hook_out", "mlp.hook_out")
    seen: dict[str, Tensor] = {}
    model = copy.deepcopy(each.eager)
    for index, layer in enumerate(model.get_decoder().layers):
        layer.register_forward_pre_hook(
            lambda m, a, k, i=index: seen.update({f"blocks.{i}.hook_in": a[0] if a else k["hidden_states"]}),
            with_kwargs=True,
        )
        for part, site in ((layer, "hook_out"), (attention_of(layer), "attn.hook_out"), (layer.mlp, "mlp.hook_out")):
            if part is not None:
                part.register_forward_hook(partial(_keep_output, seen, f"blocks.{index}.{site}"))
    plain(model, each.inputs)
    assert set(seen) == set(cached.keys())
    for name, value in seen.items():
        close(cached[name].reshape(value.shape), value)


def _keep_output(seen: dict[str, Tensor], name: str, module: Any, args: Any, output: Any) -> None:
    seen[name] = output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("site", ["attn.hook_z", "attn.hook_pattern"])
def test_zeroing_a_head_equals_deleting_its_output_weights(each, site):
    def zero(x: Tensor) -> Tensor:
        (x[:, :, 1] if site.endswith("z") else x[:, 1]).zero_()
        return x

    without = without_heads(each.eager, [(each.layer, 1)])
    close(each.edited(site, zero), plain(without, each.inputs), LOOSE)


@pytest.mark.parametrize("site", ["attn.hook_attn_scores", "attn.hook_pattern"])
def test_hiding_a_key_equals_renormalising_the_pattern_without_it(each, site):
    def hide(layer: int, pattern: Tensor, first: int) -> Tensor:
        if layer == each.layer:
            pattern[..., 2:, 1] = 0
            pattern /= pattern.sum(-1, keepdim=True)
        return pattern

    def edit(x: Tensor) -> Tensor:
        if site.endswith("pattern"):
            return hide(each.layer, x, 0)
        x[..., 2:, 1] = torch.finfo(x.dtype).min
        return x

    reference = Reference(each.model)
    with reference.editing(pattern=hide):
        expected = reference.run(each.inputs)
    close(each.edited(site, edit), expected, 1e-4)


def test_zeroing_what_the_attention_says_equals_deleting_its_output_projection(each):
    def change(layer: Any) -> None:
        attention_of(layer).o_proj.weight.data.zero_()

    close(each.edited("attn.hook_out", torch.zeros_like), each.changed(change))


def test_zeroing_what_the_feed_forward_says_equals_a_module_that_says_nothing(each):
    def change(layer: Any) -> None:
        layer.mlp.register_forward_hook(
            lambda m, a, out: (torch.zeros_like(out[0]), *out[1:]) if isinstance(out, tuple) else torch.zeros_like(out)
        )

    close(each.edited("mlp.hook_out", torch.zeros_like), each.changed(change))


@pytest.mark.parametrize("site", ["hook_in", "hook_out"])
def test_steering_the_residual_stream_equals_adding_to_the_layers_input_or_output(each, site):
    def steer(x: Tensor) -> Tensor:
        return x + torch.linspace(-1, 1, x.shape[-1])

    def enter(module: Any, args: Any, kwargs: Any) -> Any:
        if args:
            return (steer(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": steer(kwargs["hidden_states"])}

    def change(layer: Any) -> None:
        if site == "hook_in":
            layer.register_forward_pre_hook(enter, with_kwargs=True)
        else:
            layer.register_forward_hook(lambda m, a, out: steer(out))

    close(each.edited(site, steer), each.changed(change), LOOSE)


@pytest.mark.parametrize(("alias", "site"), [("hook_resid_pre", "hook_in"), ("hook_resid_post", "hook_out")])
def test_the_residual_streams_other_name_is_the_same_hook(each, alias, site):
    hooks = each.bridge.hook_dict
    same = hooks[f"blocks.0.{alias}"] is hooks[f"blocks.0.{site}"]
    assert same == (each.name != "gemma3n")  # whose hook_in holds four streams, and hook_resid_pre the active one


def test_every_hook_fires_once_and_in_the_order_of_the_computation(each):
    order = ["hook_in", "attn.hook_attn_scores", "attn.hook_pattern", "attn.hook_z", "attn.hook_out", "hook_out"]
    fired: list[str] = []
    names = [f"blocks.{each.layer}.{site}" for site in order]
    each.run(*[(name, lambda x, hook, name=name: fired.append(name)) for name in names])
    assert fired == names


def test_generation_equals_hugging_faces_with_an_edit_at_every_step(each):
    def zero(z: Tensor, hook: object) -> Tensor:
        z = z.clone()
        z[:, :, 1] = 0
        return z

    settings: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "use_cache": True}
    settings |= {"output_logits": True, "return_dict_in_generate": True}
    without = without_heads(each.eager, [(each.layer, 1)])
    for model, hooks in ((each.eager, []), (without, [(f"blocks.{each.layer}.attn.hook_z", zero)])):
        with torch.no_grad(), each.bridge.hooks(fwd_hooks=hooks):
            ours = each.bridge.original_model.generate(**each.inputs, **settings)
            theirs = model.generate(**each.inputs, **settings)
        assert torch.equal(ours.sequences, theirs.sequences)
        close(torch.stack(ours.logits), torch.stack(theirs.logits), LOOSE)


def test_the_final_norm_is_its_scale_and_its_weight(each):
    inputs = dict(each.inputs)
    names = [f"ln_final.hook_{part}" for part in ("in", "scale", "normalized", "out")]
    with torch.no_grad():
        cached = each.bridge.run_with_cache(inputs.pop("input_ids"), names_filter=names, **inputs)[1]
    x, scale, normalized, out = (cached[name] for name in names)
    norm = each.bridge.ln_final
    close(normalized, (x if norm.uses_rms_norm else x - x.mean(-1, keepdim=True)) / scale)
    close(out, normalized * (norm.weight + 1 if norm.uses_weight_offset else norm.weight))


def test_gradients_reach_the_pattern(each):
    seen: dict[str, Tensor] = {}
    name = f"blocks.{each.layer}.attn.hook_pattern"

    def keep(x: Tensor, hook: object) -> None:
        x.retain_grad()
        seen["pattern"] = x

    inputs = dict(each.inputs)
    each.bridge.run_with_hooks(inputs.pop("input_ids"), fwd_hooks=[(name, keep)], **inputs)[0, -1].max().backward()
    each.bridge.zero_grad()
    assert seen["pattern"].grad is not None
    assert seen["pattern"].grad.abs().max() > 0


def test_the_check_passes_and_leaves_no_hook(each):
    check_edits_land(each.bridge, each.inputs)
    assert not any(point.fwd_hooks or point.bwd_hooks for point in each.bridge.hook_dict.values())


@pytest.mark.filterwarnings("ignore:A hook on self_attn")
@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "glm4v", "qwen3_vl_moe", "llama4", "gemma4"])
def test_the_check_catches_edits_that_transformer_lens_discards(name):
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
    from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory as Factory
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    model, inputs = {**FAMILIES, **DECODERS}[name]()
    architecture = type(model).__name__
    ours = Factory._adapters[architecture]
    theirs = SUPPORTED_ARCHITECTURES[architecture]
    try:
        Factory.register_adapter(architecture, type(theirs.__name__, (theirs,), {"required_libraries": []}))
        bridge = build_bridge_from_module(model, architecture, hf_config=model.config)
    finally:
        Factory.register_adapter(architecture, ours)
    with pytest.raises(HookError, match=r"blocks.0.attn.hook_attn_scores are discarded"):
        check_edits_land(bridge, inputs)
