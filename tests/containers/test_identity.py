"""What people hold a model in: adapters, quantised weights, wrappers, copies elsewhere, other processes."""

import copy
import json
import os
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from lmm_lens import Lens, score_heads
from lmm_lens.backends.identity import differences, identity_of
from lmm_lens.bundled import shapes
from lmm_lens.errors import ModelError
from tests.containers.held import group

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import bitsandbytes
    import optimum.quanto as quanto
    from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
    from torchao.quantization import (
        Float8WeightOnlyConfig,
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
        IntxWeightOnlyConfig,
        quantize_,
    )

LORA = {"target_modules": ["q_proj", "v_proj"], "r": 4}
pytestmark = pytest.mark.filterwarnings("ignore")  # of these packages about themselves and torch


def model_of_ones_own() -> nn.Module:
    return copy.deepcopy(shapes.load()[0])


def differing(model, before) -> set[str]:
    return set(differences(identity_of(model, None), before))


def inputs_of(model) -> dict:
    example = shapes.examples(1, ["color"])[0]
    return Lens(model, shapes.load()[1]).prompt(example.question, images=example.image).inputs


def answer(model, inputs) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits


# ---------------------------------------------------------------------- adapters


@pytest.fixture
def adapted():
    """A model with two LoRAs that change its answers, of which "first" acts."""
    model = get_peft_model(model_of_ones_own(), LoraConfig(**LORA, init_lora_weights=False), adapter_name="first")
    model.add_adapter("second", LoraConfig(**LORA, init_lora_weights=False))
    return model.eval()


def test_which_adapters_act_and_how_strongly(adapted):
    before = identity_of(adapted, None)
    assert before["adapters"].startswith("first: ")
    assert before["model"] == "LlavaForConditionalGeneration"
    adapted.set_adapter("second")
    assert differing(adapted, before) == {"adapters"}
    assert identity_of(adapted, None)["adapters"].startswith("second: ")
    adapted.base_model.set_adapter(["first", "second"])
    assert differing(adapted, before) == {"adapters"}
    adapted.set_adapter("first")
    assert identity_of(adapted, None) == before
    with adapted.disable_adapter():
        assert differing(adapted, before) == {"adapters"}
        assert identity_of(adapted, None)["adapters"].startswith("disabled: ")
    assert identity_of(adapted, None) == before
    layer = next(module for module in adapted.modules() if hasattr(module, "scaling") and hasattr(module, "lora_A"))
    layer.scaling["first"] *= 1.5
    assert differing(adapted, before) == {"adapters"}


@pytest.mark.parametrize("adapter", ["first", "second"])
def test_any_weight_of_an_adapter_counts(adapted, adapter):
    before = identity_of(adapted, None)
    weights = [weight for name, weight in adapted.named_parameters() if f"lora_B.{adapter}" in name]
    assert weights
    weights[-1].data[1, 2] += 1e-3
    assert differing(adapted, before) == {"weights"}


def test_merged_adapters_are_another_state(adapted):
    before = identity_of(adapted, None)
    adapted.merge_adapter()
    assert differing(adapted, before) == {"weights", "adapters"}
    merged = identity_of(adapted, None)
    adapted.unmerge_adapter()
    assert "adapters" not in differing(adapted, before)
    assert identity_of(adapted.merge_and_unload(), None)["adapters"] == "none" != merged["adapters"]


def test_a_model_with_adapters_is_the_same_with_its_wrapper_and_without(adapted):
    assert identity_of(adapted.get_base_model(), None) == identity_of(adapted, None)
    assert Lens(adapted).identity == Lens(adapted.get_base_model()).identity
    adapted.register_forward_hook(lambda *_: None)  # acts where the wrapper is called alone
    assert differing(adapted.get_base_model(), identity_of(adapted, None)) == {"hooks"}


def test_adapters_that_transformers_puts_in_itself():
    model = model_of_ones_own()
    plain = identity_of(model, None)
    model.add_adapter(LoraConfig(**LORA, init_lora_weights=False), adapter_name="first")
    model.add_adapter(LoraConfig(**LORA, init_lora_weights=False), adapter_name="second")
    model.eval().set_adapter("first")
    before = identity_of(model, None)
    assert {"adapters", "weights", "modules"} <= set(differences(before, plain))
    for change in (lambda: model.set_adapter("second"), model.disable_adapters):
        change()
        assert differing(model, before) == {"adapters"}
        model.enable_adapters()
        model.set_adapter("first")
        assert identity_of(model, None) == before


def test_other_kinds_of_adapters():
    model = get_peft_model(
        model_of_ones_own(), IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    ).eval()
    before = identity_of(model, None)
    with model.disable_adapter():
        assert differing(model, before) == {"adapters"}
    next(weight for name, weight in model.named_parameters() if "ia3_l" in name).data[0] += 1
    assert differing(model, before) == {"weights"}
    options = {"num_virtual_tokens": 3, "token_dim": 128, "num_layers": 6}
    prompted = get_peft_model(model_of_ones_own(), PromptTuningConfig(task_type="CAUSAL_LM", **options)).eval()
    before = identity_of(prompted, None)
    assert {"model", "weights"} <= set(differences(before, identity_of(prompted.get_base_model(), None)))
    with prompted.disable_adapter():
        assert "code" in differing(prompted, before)


# ---------------------------------------------------------------------- quantised weights


def layer_of(model) -> nn.Module:
    """The layer whose weights are quantised."""
    return model.get_decoder().layers[2]


def by_torchao(config, dtype=torch.float32):
    def make():
        model = model_of_ones_own().to(dtype)
        quantize_(layer_of(model), config)
        return model

    return make


def by_quanto(weights, freeze=True):
    def make():
        model = model_of_ones_own()
        quanto.quantize(layer_of(model), weights=weights)
        if freeze:
            quanto.freeze(model)
        return model.eval()

    return make


def by_bitsandbytes(layer, **options):
    def make():
        model = model_of_ones_own()
        for module in list(layer_of(model).modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    new = layer(child.in_features, child.out_features, bias=False, **options)
                    new.take(child.weight.data.clone())
                    setattr(module, name, new.to("cpu").requires_grad_(False))
        return model.eval()

    return make


class Linear4bit(bitsandbytes.nn.Linear4bit):
    """Quantised when it is moved, as when transformers loads a model."""

    def take(self, weight):
        options = {"quant_type": self.weight.quant_type, "compress_statistics": self.weight.compress_statistics}
        self.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, module=self, **options)


class Linear8bit(bitsandbytes.nn.Linear8bitLt):
    def take(self, weight):
        self.weight = bitsandbytes.nn.Int8Params(weight.half(), requires_grad=False, has_fp16_weights=False)


QUANTISED = {
    "torchao int8": by_torchao(Int8WeightOnlyConfig()),
    "torchao int8, activations too": by_torchao(Int8DynamicActivationInt8WeightConfig()),
    "torchao int4": by_torchao(IntxWeightOnlyConfig(weight_dtype=torch.int4)),
    "torchao fp8": by_torchao(Float8WeightOnlyConfig(), torch.bfloat16),
    "quanto int8": by_quanto(quanto.qint8),
    "quanto int4": by_quanto(quanto.qint4),
    "quanto fp8": by_quanto(quanto.qfloat8),
    "quanto int8, not frozen": by_quanto(quanto.qint8, freeze=False),
    "quanto int4, not frozen": by_quanto(quanto.qint4, freeze=False),
    "bitsandbytes nf4": by_bitsandbytes(Linear4bit, quant_type="nf4", compress_statistics=False),
    "bitsandbytes nf4, scales quantised": by_bitsandbytes(Linear4bit, quant_type="nf4", compress_statistics=True),
    "bitsandbytes nf4 in bf16": by_bitsandbytes(Linear4bit, quant_type="nf4", compute_dtype=torch.bfloat16),
    "bitsandbytes fp4": by_bitsandbytes(Linear4bit, quant_type="fp4", compress_statistics=False),
    "bitsandbytes int8": by_bitsandbytes(Linear8bit, has_fp16_weights=False),
    "bitsandbytes int8, outliers": by_bitsandbytes(Linear8bit, has_fp16_weights=False, threshold=6.0),
}


def parts_of_a_weight(module) -> dict[str, torch.Tensor]:
    """The tensors that a quantised weight is made of."""
    weight = module.weight
    if getattr(weight, "quant_state", None) is not None:
        state = weight.quant_state
        found = {"data": weight.data, "absmax": state.absmax, "code": state.code}
        nested = {"nested absmax": state.state2.absmax, "offset": state.offset} if state.nested else {}
        return found | nested
    if hasattr(weight, "SCB"):
        return {"data": weight.data, "SCB": weight.SCB if weight.SCB is not None else module.state.SCB}
    if hasattr(type(weight), "__tensor_flatten__"):
        found = {name: getattr(weight, name) for name in weight.__tensor_flatten__()[0]}
        inner = {name: value._data for name, value in found.items() if hasattr(value, "_data")}  # packed by quanto
        return {name: value for name, value in (found | inner).items() if value is not None}
    return {"data": weight.data}


@pytest.fixture(scope="module")
def known():
    """The identity of each as it was made first."""
    return {}


@pytest.mark.parametrize("name", QUANTISED)
def test_quantised_weights_are_told_without_harm(name, known):
    model = QUANTISED[name]()
    before = identity_of(model, None)
    assert identity_of(QUANTISED[name](), None) == before
    assert all(differences(before, other) for other in known.values())
    known[name] = before
    inputs = inputs_of(model)
    expected = answer(QUANTISED[name](), inputs)  # of one whose identity nobody has asked
    assert torch.equal(answer(model, inputs), expected)
    assert identity_of(model, None) == before, "a run has made another model of it"
    lens = Lens(model, shapes.load()[1])
    score_heads(lens, lens.prompt(inputs=inputs))
    assert torch.equal(answer(model, inputs), expected)


@pytest.mark.parametrize("ran", [False, True], ids=["new", "after a run"])
@pytest.mark.parametrize("name", QUANTISED)
def test_any_part_of_a_quantised_weight_counts(name, ran):
    model = QUANTISED[name]()
    if ran:
        answer(model, inputs_of(model))
    before = identity_of(model, None)
    for part, tensor in parts_of_a_weight(layer_of(model).mlp.down_proj).items():
        flat = tensor.detach().view(-1)
        kept = flat[1 % len(flat)].clone()
        flat[1 % len(flat)] = kept.float() * 2 + 1 if kept.dtype.is_floating_point else kept ^ 3
        assert differing(model, before) == {"weights"}, part
        flat[1 % len(flat)] = kept
        assert identity_of(model, None) == before, part


def test_it_says_how_the_weights_are_quantised():
    names = ("bitsandbytes nf4", "bitsandbytes int8", "torchao int8", "quanto int8")
    assert [identity_of(QUANTISED[name](), None)["dtype"] for name in names] == [
        *("Params4bit nf4, float32", "Int8Params, float32", "Int8Tensor, float32", "WeightQBytesTensor, float32")
    ]


# ---------------------------------------------------------------------- wrappers, copies, processes


def test_a_compiled_model_is_the_model():
    model = model_of_ones_own()
    before = identity_of(model, None)
    assert identity_of(torch.compile(model), None) == before
    assert identity_of(nn.DataParallel(model), None) == before
    layers = model.get_decoder().layers
    layers[1] = torch.compile(layers[1])
    layers[2].compile()
    layers[3].mlp.forward = torch.compile(layers[3].mlp.forward)
    assert identity_of(model, None) == before
    layers[1].register_forward_hook(lambda *_: None)
    assert differing(model, before) == {"hooks"}


def test_copies_and_copies_of_files_are_the_same_model(tmp_path, lens):
    before = lens.identity
    assert Lens(*copy.deepcopy(shapes.load())).identity == before
    lens.model.save_pretrained(tmp_path)
    lens.processor.save_pretrained(tmp_path)
    assert Lens.from_pretrained(str(tmp_path), dtype=torch.float32).identity == before
    assert Lens.demo(backend="transformer_lens").identity == before
    assert Lens.demo(backend="nnsight").identity == before


def started(script: str, *arguments: str, seed: int = 0) -> subprocess.Popen:
    """Python with a script of its own, in which sets have another order for each seed."""
    command = [sys.executable, "-W", "ignore", *script.split(" ", 1), *arguments]
    there = {**os.environ, "PYTHONHASHSEED": str(seed), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=there, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def said(process: subprocess.Popen) -> dict:
    """The last line that it printed."""
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


def test_another_process_finds_the_same():
    from tests.containers.hooked import identities

    script = "-c import json; from tests.containers.hooked import identities; print(json.dumps(identities()))"
    found = [said(process) for process in [started(script, seed=seed) for seed in (0, 1)]]
    here = json.loads(json.dumps(identities()))
    assert found[0] == found[1] == here
    assert len({json.dumps(each) for each in here.values()}) == len(here)


def test_a_model_that_is_sharded_among_processes_is_the_whole_one(tmp_path):
    meeting = str(tmp_path / "meeting")
    processes = [started("-m tests.containers.sharded", meeting, str(rank), "2") for rank in range(2)]
    found = [said(process) for process in processes]
    before = json.loads(json.dumps(identity_of(shapes.load()[0], None)))
    for each in found:
        assert each["sharded"] == each["replicated"] == before
        assert differences(each["edited"], before) == ["weights"]
    assert found[0] == found[1]


def test_weights_that_fsdp1_has_glued_together_are_refused():
    wrapper = FullyShardedDataParallel(model_of_ones_own(), process_group=group(), device_id=torch.device("cpu"))
    with pytest.raises(ModelError, match=r"of the model are glued together and cut by Fully(?s:.*)fully_shard"):
        identity_of(wrapper, None)
