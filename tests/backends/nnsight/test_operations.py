"""The operations of an attention forward are found by reading its source, and checked against the model's numbers."""

import inspect

import pytest
import torch
from torch import nn

from lmm_lens import AblateHeads, Knockout, Lens, Read
from lmm_lens.backends.nnsight.attention_labels import operations_of
from lmm_lens.core import envoys, trace
from lmm_lens.errors import HookError
from tests.support.cases import case
from tests.support.models import FAMILIES
from tests.support.nnsight_lenses import edit_of
from tests.support.reference import attention_of

CALL, UPDATE = "attention_interface_", "past_key_values_update_"


def classes(family):
    return {type(attention_of(layer)) for layer in family.model.get_decoder().layers} - {type(None)}


def test_labels_are_found_for_the_attention_of_every_family(family):
    layers = family.on("nnsight")._backend.model_envoys.layers
    for layer in family.attending:
        assert layers[layer].attention_call.startswith(CALL)
        assert layers[layer].cache_update.startswith(UPDATE)
        assert layers[layer].attention_call in layers[layer].attention.source.names
        assert "pattern" in layers[layer].sites
    for layer in set(range(family.n_layers)) - set(family.attending):
        assert layers[layer].sites == ("resid_pre", "resid_post", "mlp_out")


def test_the_label_is_that_of_the_call_and_not_of_the_choice_of_the_function(family):
    """The operation returns the output [batch, query, head, d_head]; the one before it returns a function."""
    lens = family.on("nnsight")
    layer = lens._backend.model_envoys.layers[family.self_attending[0]]
    shape = (1, family.prompt.n_tokens, layer.n_heads, layer.d_head)
    with lens.trace(family.prompt):
        out = getattr(layer.attention.source, layer.attention_call).output[0].save()
    assert tuple(out.shape) == shape


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        ("attention_interface", ["attention_interface_0", "attention_interface_1"], "attention_interface_1"),
        ("chosen", ["attention_interface_0", "chosen_0", "chosen_1", "o_proj_0"], "chosen_1"),
        ("chosen", ["chosen_0", "chosen_1", "chosen_2"], "chosen_2"),
        ("chosen", ["o_proj_0"], None),
    ],
)
def test_the_call_is_told_by_the_source_and_not_by_a_name_written_down(monkeypatch, name, labels, expected):
    class Attention(nn.Module):
        def forward(self, x):
            return x

    source = f"def forward(self, x):\n    {name}: int = ALL_ATTENTION_FUNCTIONS.get(x)\n    return {name}(x)\n"
    monkeypatch.setattr(inspect, "getsource", lambda given: source)
    assert operations_of(Attention, labels)[0] == expected


def test_the_update_is_that_of_whatever_the_cache_is_called():
    attention = classes(case("llava")).pop()
    for labels, expected in (
        (["past_key_values_update_0"], "past_key_values_update_0"),
        (["self_past_key_values_update_0", "o_proj_0"], "self_past_key_values_update_0"),
        (["o_proj_0"], None),
    ):
        assert operations_of(attention, labels)[1] == expected


def test_attention_without_a_source_is_refused_by_name():
    class Attention(nn.Module):
        pass

    Attention.forward = print
    with pytest.raises(HookError, match=r"the source of Attention\.forward cannot be read"):
        operations_of(Attention, [])


# ---------------------------------------------------------------------- the check of the first run


def fresh(name="llava", remote=False):
    lens = Lens(case(name).model, backend="nnsight", remote=remote)
    return lens, lens._backend.model_envoys.layers


@pytest.mark.parametrize("wrong", ["attention_call", "cache_update"])
@pytest.mark.parametrize("remote", [False, "local"])
def test_a_wrong_label_is_an_error_and_never_a_wrong_number(wrong, remote):
    llava = case("llava")
    lens, layers = fresh(remote=remote)
    labels = list(layers[1].attention.source.names)
    right_one = getattr(layers[1], wrong)
    others = [label for label in labels if label != right_one][:: 3 if remote else 1]  # a job takes a while
    used = []
    right = llava.lens.run(llava.prompt, [edit_of("llava", "knockout")], read=["pattern"])
    for label in others:
        setattr(layers[1], wrong, label)
        try:
            run = lens.run(llava.prompt, [edit_of("llava", "knockout")], read=["pattern"])
        except Exception:
            continue
        used.append(label)  # the same operation under another name, or one that is not used here
        assert (run.logits - right.logits).abs().max() < 1e-4, label
        assert (run.reads["pattern", 1] - right.reads["pattern", 1]).abs().max() < 1e-4, label
    assert len(used) < len(others) or (wrong == "cache_update" and not remote)


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen2_5_vl", "mllama"])
@pytest.mark.parametrize("call", ["run", "generate", "read in a trace", "write in a trace"])
def test_a_call_whose_numbers_mean_something_else_is_an_error(name, call, monkeypatch):
    """As if a new transformers gave the scaling in another way: the recomputed pattern is not the model's."""
    family = case(name)
    lens, _ = fresh(name)
    layer = family.self_attending[-1]
    patterns = family.lens.run(family.prompt, read=["pattern"]).reads["pattern", layer]
    right = envoys.call_of

    def wrong(layer, operation):
        made = right(layer, operation)
        made.scaling = made.scaling * 3
        return made

    def go():
        if call == "run":
            lens.run(family.prompt, read=[Read("pattern", [layer])])
        elif call == "generate":
            lens.generate(family.prompt, [Knockout("image", "last", layers=[layer])], max_new_tokens=2)
        elif call == "read in a trace":
            reading(lens, family.prompt, layer)
        else:
            writing(lens, family.prompt, layer, patterns)

    go()
    for module in (envoys, trace):
        monkeypatch.setattr(module, "call_of", wrong, raising=False)
    with pytest.raises(HookError, match=f"the attention of layer {layer} cannot be followed"):
        go()


def reading(lens, prompt, layer):
    with lens.trace(prompt):
        lens.read(layer, "pattern")


def writing(lens, prompt, layer, pattern):
    with lens.trace(prompt):
        lens.write(layer, "pattern", pattern)


def test_a_model_whose_attention_is_not_transformers_own_is_refused():
    """A decoder layer with attention of its own, past the interface: no pattern, and everything else as before."""
    model, inputs = FAMILIES["llava"]()
    kind = type(attention_of(model.get_decoder().layers[1]))

    class Own(kind):
        def forward(self, hidden_states, **others):
            return self.o_proj(hidden_states), None

    model.get_decoder().layers[1].self_attn.__class__ = Own
    native, lens = Lens(model), Lens(model, backend="nnsight")
    prompt = lens.prompt(inputs=inputs)
    for read in ("pattern", Read("pattern", [1])):
        with pytest.raises(HookError, match=r"layer 1 \(LlamaDecoderLayer\) has no pattern; it has resid_pre"):
            lens.run(prompt, read=[read])
    reads = [Read("pattern", [0, 2]), "z"]
    one, other = (each.run(prompt, [AblateHeads([(1, 2)])], read=reads) for each in (native, lens))
    assert torch.equal(one.logits, other.logits)
    assert all(torch.equal(other.reads[key], value) for key, value in one.reads.items())
