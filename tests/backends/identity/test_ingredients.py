"""Everything beside the weights that answers depend on: changed alone, it is named."""

import copy
import functools
import itertools
import json
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.models.llama import modeling_llama

from lmm_lens import AblateHeads, Lens
from lmm_lens.backends.identity import processors
from lmm_lens.bundled import shapes


@pytest.fixture
def own():
    """A model and a processor to be changed, and their lens."""
    model, processor = copy.deepcopy(shapes.load())
    lens = Lens(model, processor)
    return SimpleNamespace(model=model, processor=processor, lens=lens, layers=model.get_decoder().layers)


def differing(lens, before) -> set[str]:
    now = lens.identity
    assert now.keys() == before.keys()
    return {key for key in before if before[key] != now[key]}


# ---------------------------------------------------------------------- modules and code


def test_an_activation_of_another_class(own):
    before = own.lens.identity
    own.layers[2].mlp.act_fn = nn.GELU()
    first = own.lens.identity
    assert differing(own.lens, before) == {"modules"}
    own.layers[2].mlp.act_fn = nn.GELU(approximate="tanh")
    assert differing(own.lens, first) == {"modules"}


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: setattr(layer.self_attn, "scaling", 0.3),
        lambda layer: setattr(layer.input_layernorm, "variance_epsilon", 1e-3),
        lambda layer: setattr(layer.self_attn, "is_causal", False),
        lambda layer: setattr(layer.self_attn, "sliding_window", 4),
    ],
    ids=["scaling", "epsilon", "causal", "window"],
)
def test_a_setting_of_a_module(own, change):
    before = own.lens.identity
    change(own.layers[1])
    assert differing(own.lens, before) == {"modules"}


def test_modules_in_another_order_and_left_out(own):
    before = own.lens.identity
    own.model.get_decoder().layers = nn.ModuleList(reversed(own.layers))
    assert differing(own.lens, before) >= {"weights"}
    own.model.get_decoder().layers = own.layers
    assert own.lens.identity == before
    own.layers[3].mlp = nn.Identity()
    assert differing(own.lens, before) == {"weights", "modules"}


def test_dropout_that_is_left_in_training(own):
    own.layers[1].drop = nn.Dropout(0.5).eval()
    before = own.lens.identity
    own.layers[1].drop.train()
    assert differing(own.lens, before) == {"modules"}
    own.model.eval()
    own.layers[1].mlp.gate_proj.train()  # which does the same in training
    assert own.lens.identity == before


def halved(module, forward):
    return lambda x: forward(x) * 0.5


def thirded(module, forward):
    return lambda x: forward(x) * 0.3


class Scaled(nn.Module):
    def __init__(self, inner, by):
        super().__init__()
        self.inner, self.by = inner, by

    def forward(self, x):
        return self.inner(x) * self.by


def test_a_forward_that_a_module_has_been_given(own):
    before = own.lens.identity
    mlp, found = own.layers[1].mlp, []
    forward = mlp.forward
    for way in (halved, thirded):
        mlp.forward = way(mlp, forward)
        assert differing(own.lens, before) == {"code"}
        found.append(own.lens.identity["code"])
        mlp.forward = functools.wraps(forward)(way(mlp, forward))  # which says that it is the library's
        assert differing(own.lens, before) == {"code"}
        found.append(own.lens.identity["code"])
    assert found[0] != found[2]
    assert found[1] != found[3]
    mlp.forward = forward  # bound, as the class has it
    assert own.lens.identity == before


def test_a_method_or_a_function_of_the_library_that_was_replaced(own, monkeypatch):
    before = own.lens.identity

    def quiet(self, x):
        return x * 0

    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", quiet)
    assert differing(own.lens, before) == {"code"}
    monkeypatch.undo()
    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", functools.wraps(modeling_llama.LlamaMLP.forward)(quiet))
    assert differing(own.lens, before) == {"code"}
    monkeypatch.undo()
    assert own.lens.identity == before
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", lambda q, k, cos, sin, **_: (q, k))
    assert differing(own.lens, before) == {"code"}


def test_a_class_of_ones_own_is_told_by_its_code_and_its_settings(own):
    before = own.lens.identity
    own.layers[1].mlp = Scaled(own.layers[1].mlp, 0.5)
    first = own.lens.identity
    assert differing(own.lens, before) == {"weights", "modules", "code"}  # the weights' names, too
    own.layers[1].mlp.by = 0.6
    assert differing(own.lens, first) == {"modules"}
    own.layers[1].mlp.by = 0.5
    assert own.lens.identity == first
    Scaled.forward, forward = (lambda self, x: self.inner(x) + self.by), Scaled.forward
    try:
        assert differing(own.lens, first) == {"code"}
    finally:
        Scaled.forward = forward


# ---------------------------------------------------------------------- hooks

STRENGTH = 2.0


def steered(module, args, output):
    return output * STRENGTH


def steering(vector, strength=1.0):
    def hook(module, args, output):
        return output + strength * vector

    return hook


class Steer:
    def __init__(self, by):
        self.by = by

    def __call__(self, module, args, output):
        return output * self.by

    def method(self, module, args, output):
        return self(module, args, output)


def hooks_of_kinds():
    ones = torch.ones(128)
    partly = functools.partial
    return {
        "a function": steered,
        "another": lambda module, args, output: output * 2,
        "the same but for a number": lambda module, args, output: output * 3,
        "closing over a vector": steering(ones),
        "over another vector": steering(ones * 2),
        "over another number": steering(ones, 2.0),
        "an object": Steer(2),
        "another object": Steer(3),
        "a method": Steer(2).method,
        "a method of another object": Steer(3).method,
        "partly called": partly(Steer.__call__, Steer(2)),
        "partly called otherwise": partly(Steer.__call__, Steer(4)),
        "with a default": lambda module, args, output, by=2: output * by,
        "with another default": lambda module, args, output, by=3: output * by,
    }


def test_hooks_are_told_by_where_they_stand_what_they_do_and_what_they_use(own):
    before, seen = own.lens.identity, {}
    for name, hook in hooks_of_kinds().items():
        handle = own.layers[2].mlp.register_forward_hook(hook)
        assert differing(own.lens, before) == {"hooks"}, name
        seen[name] = own.lens.identity["hooks"]
        handle.remove()
    assert own.lens.identity == before
    assert len(set(seen.values())) == len(seen), seen
    for again, hook in hooks_of_kinds().items():  # made anew, they are the same
        handle = own.layers[2].mlp.register_forward_hook(hook)
        assert own.lens.identity["hooks"] == seen[again], again
        handle.remove()


def test_every_kind_of_hook_in_every_place_counts(own):
    before, seen = own.lens.identity, set()
    mlp, decoder = own.layers[2].mlp, own.model.get_decoder()
    for module in (mlp, own.layers[3].mlp, decoder, own.model, own.model.model.vision_tower):
        for name in ("register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"):
            handle = getattr(module, name)(lambda *_: None)
            assert differing(own.lens, before) == {"hooks"}
            seen.add(own.lens.identity["hooks"])
            handle.remove()
    everywhere = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert differing(own.lens, before) == {"hooks"}
    finally:
        everywhere.remove()
    handles = [mlp.register_forward_hook(hook) for hook in (steered, Steer(2))]
    seen |= {own.lens.identity["hooks"]}
    for handle in handles:
        handle.remove()
    for hook in (Steer(2), steered):  # in the other order
        mlp.register_forward_hook(hook)
    assert own.lens.identity["hooks"] not in seen
    assert len(seen) == 16


def test_a_number_of_its_module_that_a_hook_uses_counts(own, monkeypatch):
    own.layers[2].mlp.register_forward_hook(steered)
    before = own.lens.identity
    monkeypatch.setitem(steered.__globals__, "STRENGTH", 3.0)
    assert differing(own.lens, before) == {"hooks"}


def test_a_hook_that_holds_the_model_or_itself_is_no_riddle(own):
    found = []
    for _ in range(2):
        knot = Steer(2)
        knot.model, knot.lens, knot.itself, knot.endless = own.model, own.lens, knot, itertools.count()
        handle = own.layers[2].mlp.register_forward_hook(knot.method)
        found.append(own.lens.identity)
        handle.remove()
    assert found[0] == found[1]


# ---------------------------------------------------------------------- attention


def test_the_attention_implementation_of_each_part(own):
    names = []
    for chosen in ({"text_config": "eager"}, {"vision_config": "eager"}, {"": "eager"}):
        before = own.lens.identity
        own.model.set_attn_implementation(chosen)
        assert differing(own.lens, before) == {"attention"}
        names.append(own.lens.identity["attention"])
    assert names[0].startswith("eager, sdpa: ")
    assert names[2] == "eager"


def hot(module, query, key, value, mask, **kwargs):
    return torch.zeros_like(query).transpose(1, 2), None


def hotter(module, query, key, value, mask, **kwargs):
    return torch.ones_like(query).transpose(1, 2), None


def test_an_attention_function_of_ones_own_is_told_by_its_code(own):
    try:
        AttentionMaskInterface.register("hot", sdpa_mask)
        found = []
        for function in (hot, hotter, hot):
            AttentionInterface.register("hot", function)
            own.model.set_attn_implementation({"text_config": "hot"})
            found.append(own.lens.identity["attention"])
        assert found[0].startswith("hot, sdpa: ")
        assert found[0] == found[2] != found[1]
    finally:
        AttentionInterface._global_mapping.pop("hot")
        AttentionMaskInterface._global_mapping.pop("hot")


def test_inside_apply_it_is_the_users_own(own):
    prompt = own.lens.prompt("what color is it?", images=shapes.blank(0))
    before = own.lens.identity
    with own.lens.apply(AblateHeads([(1, 1)], mode="uniform")):
        with torch.no_grad():
            own.model(**prompt.inputs)
        switched = own.model.config.text_config._attn_implementation
        assert switched.startswith("lmm_lens"), "nothing was switched, so nothing was tested"
        assert any(module._forward_pre_hooks for module in own.model.modules())
        assert own.lens.identity == before
    assert own.lens.identity == before


# ---------------------------------------------------------------------- configs, processors, templates


def set_config(config, path, value):
    *above, last = path.split(".")
    for name in above:
        config = getattr(config, name)
    assert getattr(config, last) != value
    setattr(config, last, value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("vision_feature_layer", -2),
        ("image_token_index", 7),
        ("text_config.rms_norm_eps", 1e-3),
        ("text_config.rope_parameters", {"rope_type": "default", "rope_theta": 5e5}),
        ("vision_config.layer_norm_eps", 1e-3),
        ("vision_config.image_size", 96),
        ("own_entry", {"deep": [1, {"deeper": 2}]}),
    ],
)
def test_every_entry_of_the_config_counts(own, path, value):
    own.model.config.own_entry = {"deep": [1, {"deeper": 1}]}
    before = own.lens.identity
    set_config(own.model.config, path, value)
    assert differing(own.lens, before) == {"config"}


def test_a_config_that_a_module_alone_holds_counts(own):
    attention = own.layers[2].self_attn
    attention.config = copy.deepcopy(attention.config)
    before = own.lens.identity
    attention.config.attention_dropout = 0.4
    assert differing(own.lens, before) == {"config", "modules"}  # which now hold different ones


@pytest.mark.parametrize("entry", [{"temperature": 0.3}, {"eos_token_id": 9}, {"repetition_penalty": 1.3}])
def test_every_entry_of_the_generation_config_counts(own, entry):
    before = own.lens.identity
    own.model.generation_config.update(**entry)
    assert differing(own.lens, before) == {"generation_config"}


def retrained(tokenizer):
    """A tokenizer in which two words have changed places."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    vocabulary["red"], vocabulary["blue"] = vocabulary["blue"], vocabulary["red"]
    changed = copy.deepcopy(tokenizer)
    changed._tokenizer = Tokenizer.from_str(json.dumps(content))
    return changed


CHANGES = {
    "mean": lambda p: setattr(p.image_processor, "image_mean", [0.4, 0.5, 0.5]),
    "deviation": lambda p: setattr(p.image_processor, "image_std", [0.5, 0.5, 0.4]),
    "size": lambda p: setattr(p.image_processor.size, "shortest_edge", 40),
    "crop": lambda p: setattr(p.image_processor, "do_center_crop", False),
    "scaling": lambda p: setattr(p.image_processor, "resample", 2),
    "patches": lambda p: setattr(p, "patch_size", 4),
    "added token": lambda p: p.tokenizer.add_tokens(["zebra"]),
    "special token": lambda p: p.tokenizer.add_special_tokens({"eos_token": "zebra"}),
    "longest text": lambda p: setattr(p.tokenizer, "model_max_length", 9),
    "another tokenizer": lambda p: setattr(p, "tokenizer", retrained(p.tokenizer)),
    "another backend": lambda p: setattr(p.tokenizer, "_tokenizer", retrained(p.tokenizer)._tokenizer),
    "another vocabulary": lambda p: setattr(fast(p), "model", retrained(p.tokenizer).backend_tokenizer.model),
    "unknown words": lambda p: setattr(fast(p).model, "unk_token", "red"),
    "normalizer": lambda p: setattr(fast(p), "normalizer", normalizers.NFC()),
    "what separates words": lambda p: setattr(fast(p), "pre_tokenizer", pre_tokenizers.WhitespaceSplit()),
    "what joins them": lambda p: setattr(fast(p), "decoder", decoders.Fuse()),
}


def fast(processor):
    return processor.tokenizer.backend_tokenizer


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_setting_of_the_processor_counts(own, change):
    before = own.lens.identity
    change(own.processor)
    assert differing(own.lens, before) == {"processor"}


def test_a_vocabulary_is_written_down_only_where_something_that_is_seen_has_changed(own, monkeypatch):
    written, whole = [], processors._vocabulary
    monkeypatch.setattr(processors, "_vocabulary", lambda tokenizer: written.append(1) or whole(tokenizer))
    found = [own.lens.identity, own.lens.identity]
    own.processor.tokenizer.add_tokens(["zebra"])
    found += [own.lens.identity, own.lens.identity]
    processors._KEPT.clear()
    found.append(own.lens.identity)
    assert len(written) == 3
    assert found[0] == found[1] != found[2] == found[3] == found[4]


def test_a_chat_template_counts_by_itself(own):
    before = own.lens.identity
    own.processor.chat_template = own.processor.chat_template.replace("USER", "HUMAN")
    assert differing(own.lens, before) == {"chat_template"}
    own.processor.chat_template = None
    own.processor.tokenizer.chat_template = None
    assert own.lens.identity["chat_template"] == "none"


def test_without_a_processor_it_says_so(own):
    found = Lens(own.model).identity
    assert (found["processor"], found["chat_template"]) == ("none", "none")
    assert differing(Lens(own.model), own.lens.identity) == {"processor", "chat_template"}


def test_using_a_processor_changes_nothing(own):
    before = own.lens.identity
    own.processor(text=["a", "a b <image>"], images=[shapes.blank(0)], padding=True, truncation=True, max_length=60)
    own.processor.tokenizer("a b c", padding="max_length", max_length=9)
    own.processor.tokenizer.padding_side = "right" if own.processor.tokenizer.padding_side == "left" else "left"
    assert own.lens.identity == before


# ---------------------------------------------------------------------- what it says


def test_it_says_what_kind_of_numbers_the_weights_are(own):
    before = own.lens.identity
    own.model.to(torch.bfloat16)
    assert differing(own.lens, before) == {"weights", "dtype"}
    assert (before["dtype"], own.lens.identity["dtype"]) == ("float32", "bfloat16")
    own.model.lm_head.float()
    assert own.lens.identity["dtype"] == "bfloat16, float32"


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
def test_what_has_no_part_in_an_answer_does_not_count(own):
    before = own.lens.identity
    own.model.requires_grad_(False)
    own.model.gradient_checkpointing_enable()
    own.model.config._name_or_path = own.model.name_or_path = "elsewhere"
    own.model.train()
    own.model.eval()
    own.model.zero_grad()
    own.model.tie_weights()
    assert own.lens.identity == before


def test_every_entry_is_plain_text_or_a_number(own):
    assert {type(value) for value in own.lens.identity.values()} == {str, int}
    assert own.lens.identity["family"] == "llava"
