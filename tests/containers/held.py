"""What people hold a model in, as they write it; of each, which backends take it and what the others say.

Nothing heavy is imported before a container is made: the table of the documentation is made from this list.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

BACKENDS = ("native", "nnsight", "transformer_lens")


@dataclass(frozen=True)
class Held:
    """One way to hold a model.

    Attributes:
        name: of the container.
        code: what its user writes.
        make: gives what is handed to `Lens`, and the Hugging Face model that runs, to put hooks on by hand.
        refused: by backend, how the refusal begins.
        tolerance: of logits, which are of order ten; other kernels round otherwise.
        advice: what the documentation says where it is refused.
    """

    name: str
    code: str
    make: Callable[[], tuple[Any, Any]]
    refused: dict[str, str] = field(default_factory=dict)
    tolerance: float = 2e-3
    advice: str = ""


HELD: list[Held] = []
VIRTUAL = "virtual tokens shift every position: use LoRA or IA3, or give `model.get_base_model()`"


def held(name: str, code: str, **options: Any) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Enter a container into the list; what makes it gives the model, or the model and the one that runs in it."""

    def enter(make: Callable[[], Any]) -> Callable[[], Any]:
        def made() -> tuple[Any, Any]:
            found = make()
            return found if isinstance(found, tuple) else (found, found)

        HELD.append(Held(name, code, made, **options))
        return make

    return enter


def everywhere(text: str) -> dict[str, str]:
    """Refused by all backends alike."""
    return dict.fromkeys(BACKENDS, text)


def plain() -> Any:
    """A copy of the bundled model for one's own use."""
    from lmm_lens.bundled import shapes

    return copy.deepcopy(shapes.load()[0])


def lively(model: Any) -> Any:
    """Adapters whose weights are not the zeros that they begin with."""
    import torch

    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.15
        elif "ia3_" in name:
            parameter.data = 1 + torch.randn(parameter.shape, generator=generator) * 0.3
    return model


def lora(**options: Any) -> Any:
    from peft import LoraConfig

    return LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj", "o_proj"], **options})


def with_two_adapters() -> Any:
    """LoRAs "first", which acts, and "second"."""
    from peft import get_peft_model

    model = get_peft_model(plain(), lora(), "first")
    model.add_adapter("second", lora(r=2, target_modules=["o_proj", "gate_proj"]))
    return lively(model)


@held("a plain model", "Lens(model, processor)", tolerance=1e-4)
def _() -> Any:
    return plain()


# ---------------------------------------------------------------------- PEFT


@held("LoRA", "get_peft_model(model, LoraConfig(...))")
def _() -> Any:
    from peft import get_peft_model

    model = lively(get_peft_model(plain(), lora()))
    return model, model.get_base_model()


@held("DoRA", "get_peft_model(model, LoraConfig(use_dora=True, ...))")
def _() -> Any:
    from peft import get_peft_model

    model = lively(get_peft_model(plain(), lora(use_dora=True, target_modules=["v_proj", "down_proj"])))
    return model, model.get_base_model()


@held("IA3", "get_peft_model(model, IA3Config(...))")
def _() -> Any:
    from peft import IA3Config, get_peft_model

    config = IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"])
    model = lively(get_peft_model(plain(), config))
    return model, model.get_base_model()


@held("the second of two adapters", 'peft_model.set_adapter("second")')
def _() -> Any:
    model = with_two_adapters()
    model.set_adapter("second")
    return model, model.get_base_model()


@held("two adapters at once", 'peft_model.base_model.set_adapter(["first", "second"])')
def _() -> Any:
    model = with_two_adapters()
    model.base_model.set_adapter(["first", "second"])
    return model, model.get_base_model()


@held("adapters that are off", "peft_model.base_model.disable_adapter_layers()")
def _() -> Any:
    from peft import get_peft_model

    model = lively(get_peft_model(plain(), lora()))
    model.base_model.disable_adapter_layers()
    return model, model.get_base_model()


@held("a merged adapter", "peft_model.merge_adapter()")
def _() -> Any:
    from peft import get_peft_model

    model = lively(get_peft_model(plain(), lora()))
    model.merge_adapter()
    return model, model.get_base_model()


@held("merged and unloaded", "peft_model.merge_and_unload()")
def _() -> Any:
    from peft import get_peft_model

    return lively(get_peft_model(plain(), lora())).merge_and_unload()


@held("transformers' own adapters", "model.add_adapter(LoraConfig(...))")
def _() -> Any:
    model = plain()
    model.add_adapter(lora())
    return lively(model).eval()


@held(
    "LoRA that drops out",
    "get_peft_model(model, LoraConfig(lora_dropout=0.1)), in training mode",
    refused=everywhere(r".*lora_dropout.* is in training mode"),
    advice="call `model.eval()`",
)
def _() -> Any:
    from peft import get_peft_model

    model = lively(get_peft_model(plain(), lora(lora_dropout=0.1)))
    return model, model.get_base_model()


@held(
    "prompt tuning",
    "get_peft_model(model, PromptTuningConfig(...))",
    refused=everywhere(r"the adapter 'default' \(PROMPT_TUNING\) puts virtual tokens before the sequence"),
    advice=VIRTUAL,
)
def _() -> Any:
    from peft import PromptTuningConfig, get_peft_model

    model = get_peft_model(plain(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, **SIZES))
    return model, model.get_base_model()


@held(
    "prefix tuning",
    "get_peft_model(model, PrefixTuningConfig(...))",
    refused=everywhere(r"the adapter 'default' \(PREFIX_TUNING\) puts virtual tokens before the sequence"),
    advice=VIRTUAL,
)
def _() -> Any:
    from peft import PrefixTuningConfig, get_peft_model

    model = get_peft_model(plain(), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, **SIZES))
    return model, model.get_base_model()


SIZES = {"num_layers": 6, "num_attention_heads": 8, "token_dim": 128, "num_transformer_submodules": 1}

# ---------------------------------------------------------------------- quantised


def of_torchao(config: Any) -> Any:
    from torchao.quantization import quantize_

    model = plain()
    quantize_(model.model.language_model, config)
    return model


@held("torchao, 8-bit weights", "quantize_(model.model.language_model, Int8WeightOnlyConfig())")
def _() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return of_torchao(Int8WeightOnlyConfig())


@held("torchao, 8-bit activations", "quantize_(..., Int8DynamicActivationInt8WeightConfig())", tolerance=0.1)
def _() -> Any:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    return of_torchao(Int8DynamicActivationInt8WeightConfig())


@held("torchao, 4-bit weights", "quantize_(..., IntxWeightOnlyConfig(torch.int4))")
def _() -> Any:
    import torch
    from torchao.quantization import IntxWeightOnlyConfig

    return of_torchao(IntxWeightOnlyConfig(torch.int4))


def of_bitsandbytes(make: Callable[[Any], Any]) -> Any:
    """The decoder's linear layers replaced, as transformers does while loading."""
    from torch import nn

    model = plain()
    for module in list(model.model.language_model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, make(child))
    return model.eval()


@held(
    "bitsandbytes, 4 bits",
    "from_pretrained(..., quantization_config=BitsAndBytesConfig(load_in_4bit=True))",
    tolerance=0.1,  # kernels in bfloat16
)
def _() -> Any:
    import torch
    from bitsandbytes import nn as bnb

    def four(linear: Any) -> Any:
        new = bnb.Linear4bit(
            linear.in_features, linear.out_features, bias=False, compute_dtype=torch.float32, quant_type="nf4"
        )
        new.weight = bnb.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
        return new.to("cpu")

    return of_bitsandbytes(four)


@held(
    "bitsandbytes, 8 bits",
    "from_pretrained(..., quantization_config=BitsAndBytesConfig(load_in_8bit=True))",
    tolerance=0.1,
)
def _() -> Any:
    from bitsandbytes import nn as bnb

    def eight(linear: Any) -> Any:
        new = bnb.Linear8bitLt(linear.in_features, linear.out_features, bias=False, has_fp16_weights=False)
        new.weight = bnb.Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False)
        return new.to("cpu")

    return of_bitsandbytes(eight)


@held("quanto, 8-bit weights", "quantize(model.model.language_model, weights=qint8); freeze(model)")
def _() -> Any:
    from optimum.quanto import freeze, qint8, quantize

    model = plain()
    quantize(model.model.language_model, weights=qint8)
    freeze(model.model.language_model)
    return model


@held("quanto, 4-bit weights", "quantize(model.model.language_model, weights=qint4); freeze(model)")
def _() -> Any:
    from optimum.quanto import freeze, qint4, quantize

    model = plain()
    quantize(model.model.language_model, weights=qint4)
    freeze(model.model.language_model)
    return model


@held("half precision after the lens was made", "lens = Lens(model, ...); model.half()", tolerance=0.1)
def _() -> Any:
    return plain()  # the test calls half()


# ---------------------------------------------------------------------- compiled


@held("torch.compile", "torch.compile(model)")
def _() -> Any:
    import torch

    model = plain()
    return torch.compile(model, backend="eager"), model


@held("compiled in place", "model.compile()")
def _() -> Any:
    model, same = plain(), plain()
    model.compile(backend="eager")
    return model, same


@held("compiled parts", "layer.mlp = torch.compile(layer.mlp); layer.self_attn.compile()")
def _() -> Any:
    import torch

    model, same = plain(), plain()
    for layer in model.model.language_model.layers:
        layer.mlp = torch.compile(layer.mlp, backend="eager")
        layer.self_attn.compile(backend="eager")
    return model, same


@held("LoRA, compiled", "torch.compile(get_peft_model(...))")
def _() -> Any:
    import torch
    from peft import get_peft_model

    model = lively(get_peft_model(plain(), lora()))
    return torch.compile(model, backend="eager"), model.get_base_model()


# ---------------------------------------------------------------------- attention


@held("eager attention", 'model.set_attn_implementation("eager")')
def _() -> Any:
    model = plain()
    model.set_attn_implementation("eager")
    return model


@held("flex attention", 'model.set_attn_implementation({"text_config": "flex_attention"})')
def _() -> Any:
    model = plain()
    model.set_attn_implementation({"text_config": "flex_attention"})
    return model


# ---------------------------------------------------------------------- several devices and processes


@held("DataParallel", "torch.nn.DataParallel(model)")
def _() -> Any:
    from torch import nn

    model = plain()
    return nn.DataParallel(model), model


@held("DistributedDataParallel", "DistributedDataParallel(model)")
def _() -> Any:
    from torch import nn

    model = plain()
    return nn.parallel.DistributedDataParallel(model, process_group=group()), model


@held(
    "FSDP1",
    "FullyShardedDataParallel(model)",
    refused=everywhere("FSDP1 gathers a layer's weights only inside"),
    advice="use `fully_shard` (FSDP2)",
)
def _() -> Any:
    import torch
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = plain()
    return FullyShardedDataParallel(model, process_group=group(), device_id=torch.device("cpu")), model


@held(
    "FSDP2",
    "fully_shard(model)",
    refused=dict.fromkeys(BACKENDS[1:], "FSDPLlavaForConditionalGeneration is divided by fully_shard"),
    advice="another framework's modules stand on a copy, and a sharded model has none",
)
def _() -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    group()
    model = plain()
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    return model


def group() -> Any:
    """A process group of this process alone."""
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return dist.group.WORLD


@held(
    "without weights",
    'with torch.device("meta"): ...',
    refused=everywhere("the weights of LlavaForConditionalGeneration are on the meta device"),
    advice="load the weights; to a server a lens is opened with `remote=...`",
)
def _() -> Any:
    return plain().to("meta")


@held(
    "in training mode",
    "model.train()",
    refused=everywhere("the model is in training mode, so dropout would"),
    advice="call `model.eval()`",
)
def _() -> Any:
    return plain().train()
