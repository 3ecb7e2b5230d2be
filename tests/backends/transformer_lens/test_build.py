"""Building a bridge: what it leaves alone, what it needs, what it refuses."""

import copy
import importlib.util
import re
import socket
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory as Factory
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

from lmm_lens.backends.transformer_lens import bridge_of
from lmm_lens.backends.transformer_lens.architectures import MENDED, NEW, ON_ANY_DECODER, adapters, register
from lmm_lens.backends.transformer_lens.architectures.hooked_attention import IMPLEMENTATION
from lmm_lens.backends.transformer_lens.build import supported
from lmm_lens.errors import ModelError
from tests.support.cases import close, plain
from tests.support.decoders import DECODERS
from tests.support.models import FAMILIES
from tests.support.models.parts import TEXT, clip

BUILDERS = {**FAMILIES, **DECODERS}


def snapshot(model):
    """Everything of a model that building a bridge could have changed."""
    return {
        "modules": [(name, id(module), type(module)) for name, module in model.named_modules()],
        "tensors": [(name, id(tensor)) for name, tensor in [*model.named_parameters(), *model.named_buffers()]],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "attributes": [sorted(module.__dict__) for module in model.modules()],
        "config": model.config.to_dict(),
        "attention": [m.config._attn_implementation for m in model.modules() if hasattr(m, "config")],
        "training": model.training,
    }


@pytest.mark.parametrize("name", BUILDERS)
def test_the_users_model_is_not_touched(name):
    model, inputs = BUILDERS[name]()
    before, logits, values = snapshot(model), plain(model, inputs), copy.deepcopy(model.state_dict())
    before["attributes"] = snapshot(model)["attributes"]  # transformers notes its first call
    before["hooks"] = snapshot(model)["hooks"]
    bridge = bridge_of(model)
    with bridge.hooks(fwd_hooks=[("blocks.0.hook_in", lambda x, hook: x.zero_())]):
        plain(bridge.original_model, inputs)
    assert snapshot(model) == before
    assert torch.equal(plain(model, inputs), logits)
    assert all(torch.equal(value, values[key]) for key, value in model.state_dict().items())


def test_the_twin_shares_every_weight():
    model, _ = FAMILIES["llava"]()
    ours = {tensor.data_ptr() for tensor in bridge_of(model).original_model.parameters()}
    assert ours == {tensor.data_ptr() for tensor in model.parameters()}


def test_hooks_on_the_users_model_would_be_lost_and_are_refused():
    model, _ = FAMILIES["llava"]()
    handle = model.get_decoder().layers[0].register_forward_hook(lambda module, args, output: None)
    with pytest.raises(ModelError, match=r"hooks stand on model\.language_model\.layers\.0.*\n.*lens\.bridge"):
        bridge_of(model)
    handle.remove()
    bridge_of(model)


def test_a_bridge_still_gives_attentions_and_hidden_states_when_the_model_already_did():
    model, inputs = FAMILIES["qwen2_5_vl"]()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        theirs = model(**inputs, output_attentions=True, output_hidden_states=True)
        ours = bridge_of(model).original_model(**inputs, output_attentions=True, output_hidden_states=True)
    assert len(ours.attentions) == len(theirs.attentions) == 3
    for name in ("attentions", "hidden_states"):
        for mine, other in zip(ours[name], theirs[name], strict=True):
            close(mine, other)


@pytest.mark.parametrize("name", BUILDERS)
def test_the_bridge_is_eager_whatever_the_model_was(name):
    bridge = bridge_of(BUILDERS[name]()[0])
    configs = [m.config for m in bridge.original_model.modules() if hasattr(m, "config")]
    found = {getattr(config, "_attn_implementation", None) for config in configs} - {None}
    assert "eager" in found
    assert found <= {"eager", IMPLEMENTATION}


def test_two_bridges_of_one_model_do_not_disturb_each_other():
    model, inputs = FAMILIES["qwen2_vl"]()
    one, two = bridge_of(model), bridge_of(model)
    expected = plain(two.original_model, inputs)
    with one.hooks(fwd_hooks=[("blocks.1.attn.hook_pattern", lambda x, hook: x * 0)]):
        assert torch.equal(plain(two.original_model, inputs), expected)
        assert not torch.equal(plain(one.original_model, inputs), expected)


def test_a_bridge_can_be_copied():
    model, inputs = FAMILIES["qwen2_vl"]()
    bridge = bridge_of(model)
    copied = copy.deepcopy(bridge)
    fired = []
    with copied.hooks(fwd_hooks=[("blocks.1.attn.hook_pattern", lambda x, hook: fired.append(hook))]):
        plain(copied.original_model, inputs)
    assert fired == [copied.blocks[1].attn.hook_pattern]


def test_nothing_is_fetched_or_installed(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network or another program was asked for")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("subprocess.Popen.__init__", refuse)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name in ("torchvision", "timm") else find(name, *a)
    )
    for name in ("llava", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "glm4v", "gemma3n"):
        model = BUILDERS[name]()[0]
        assert len(bridge_of(model).blocks) == len(model.get_decoder().layers)


def test_building_and_running_says_nothing(recwarn, capfd):
    for build in BUILDERS.values():
        model, inputs = build()
        inputs = dict(inputs)
        with torch.no_grad():
            bridge_of(model).run_with_cache(inputs.pop("input_ids"), **inputs)
    assert [str(warning.message) for warning in recwarn] == []
    assert capfd.readouterr() == ("", "")


def test_a_tokenizer_gives_the_bridge_its_text_methods(lens):
    tokenizer = lens.adapter.tokenizer
    bridge = bridge_of(lens.model, tokenizer)
    ids = bridge.to_tokens("a red circle", prepend_bos=False)
    assert ids[0].tolist() == tokenizer("a red circle", add_special_tokens=False)["input_ids"]


def test_our_architectures_are_registered_with_transformer_lens():
    register()
    for name, adapter in adapters().items():
        assert Factory._adapters[name].__name__ == adapter.__name__
    assert not set(NEW) & set(SUPPORTED_ARCHITECTURES)
    assert set(MENDED) | set(ON_ANY_DECODER) <= set(SUPPORTED_ARCHITECTURES)
    assert set(NEW) | set(MENDED) <= set(supported())


def test_transformer_lens_finds_the_new_architectures_by_entry_point(monkeypatch, recwarn):
    entries = [
        EntryPoint(name, "lmm_lens.backends.transformer_lens.architectures:Decoder", "transformer_lens.architectures")
        for name in NEW
    ]
    monkeypatch.setattr(f"{Factory.__module__}.entry_points", lambda group: entries)
    monkeypatch.setattr(Factory, "_adapters", dict(SUPPORTED_ARCHITECTURES))
    monkeypatch.setattr(Factory, "_entry_points_discovered", False)
    model, inputs = FAMILIES["internvl"]()
    expected = plain(model, inputs)
    bridge = build_bridge_from_module(model, type(model).__name__, hf_config=model.config)
    close(plain(bridge.original_model, inputs), expected)
    register()
    assert [str(warning.message) for warning in recwarn] == []


def test_transformer_lens_itself_builds_with_our_adapters():
    register()
    model, inputs = FAMILIES["qwen2_vl"]()
    expected = plain(model, inputs)
    bridge = build_bridge_from_module(model, type(model).__name__, hf_config=model.config)
    close(plain(bridge.original_model, inputs), expected)


def test_a_text_model_of_an_unknown_architecture_is_read_off_the_model():
    config = hf.CwmConfig(**TEXT, layer_types=["full_attention"] * 3)
    model = hf.CwmForCausalLM(config).eval()
    assert type(model).__name__ not in SUPPORTED_ARCHITECTURES
    inputs = {"input_ids": torch.arange(9)[None]}
    close(plain(bridge_of(model).original_model, inputs), plain(model, inputs))


def test_a_model_without_decoder_layers_is_refused_with_the_reason():
    vision = hf.CLIPVisionModel(clip())
    with pytest.raises(ModelError, match="no decoder layers were found in CLIPVisionModel"):
        bridge_of(vision)


def test_a_model_without_an_output_embedding_is_refused_with_the_reason():
    model, _ = FAMILIES["llava"]()
    with pytest.raises(ModelError, match="LlavaModel has no output embedding, so it says nothing to analyse"):
        bridge_of(model.model)


def test_a_refusal_names_what_is_supported(monkeypatch):
    def fail(*args, **kwargs):
        raise AttributeError("no layers here")

    monkeypatch.setattr("lmm_lens.backends.transformer_lens.build.build_bridge_from_module", fail)
    with pytest.raises(ModelError, match=re.escape("cannot be made a TransformerBridge: no layers here")) as caught:
        bridge_of(FAMILIES["llava"]()[0])
    assert "Qwen2VLForConditionalGeneration" in str(caught.value)


def test_what_is_no_model_of_transformers_is_refused():
    with pytest.raises(ModelError, match="expected a Hugging Face model with a config, given SimpleNamespace"):
        bridge_of(SimpleNamespace())
