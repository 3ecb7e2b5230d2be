"""What people hold a model in: PEFT, torch.compile, data-parallel wrappers; and the model in it that runs.

`generate` of such a wrapper calls the inner model, so hooks on the wrapper would see the prefill alone; what runs, and
what an adapter describes, is the inner one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import nn

from ..adapters.walker import every_module
from ..errors import ModelError


def unwrapped(model: Any) -> tuple[Any, tuple[nn.Module, ...]]:
    """The model that runs, and what it is held in, the outermost first.

    Raises:
        ModelError: it is held in something inside which its tokens or its weights are not its own.
    """
    around: list[nn.Module] = []
    while True:
        inner = _inner(model)
        if inner is None:
            return model, tuple(around)
        around.append(model)
        model = inner


def _inner(model: Any) -> Any:
    if hasattr(model, "_orig_mod"):  # torch.compile
        return model._orig_mod
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return model.module
    kind = type(model)
    if kind.__module__.startswith("torch.distributed.fsdp") and kind.__name__ == "FullyShardedDataParallel":
        raise ModelError(
            "FSDP1 gathers a layer's weights only inside its own forward, so nothing can be read or edited by itself\n"
            "  wrap the model with torch.distributed.fsdp.fully_shard (FSDP2), or give the plain model"
        )
    if kind.__module__.startswith("peft.") and hasattr(model, "get_base_model"):
        for name in model.active_adapters if isinstance(model.active_adapters, list) else [model.active_adapter]:
            config = model.peft_config[name]
            if getattr(config, "is_prompt_learning", False):
                raise ModelError(
                    f"the adapter {name!r} ({config.peft_type.value}) puts virtual tokens before the sequence, so that "
                    "no position of a prompt is where its tokens are\n"
                    "  use an adapter that changes weights (LoRA, IA3, ...), or give model.get_base_model()"
                )
        return model.get_base_model()
    return None


def framework_of(model: Any) -> str | None:
    """The backend in whose framework a model is given already; None for a plain one.

    Raises:
        ModelError: it runs in vLLM.
    """
    if type(model).__module__.startswith("nnsight.modeling.vllm"):
        raise ModelError(
            "a model that runs in vLLM cannot be read or edited here: its kernels give no attention weights, and it "
            "joins the rows of all requests into one\n"
            "  open it with transformers: Lens.from_pretrained(name, backend='nnsight')"
        )
    kinds = {kind.__module__.partition(".")[0] for kind in type(model).__mro__}
    if "nnsight" in kinds and hasattr(model, "_module"):
        return "nnsight"
    return "transformer_lens" if "transformer_lens" in kinds and hasattr(model, "original_model") else None


def is_compiled(modules: Iterable[nn.Module], around: tuple[nn.Module, ...] = ()) -> bool:
    """Whether the model of these modules, what it is held in, or a part of it was given to torch.compile."""
    return any(
        # looked up where they stand: a module that lacks an attribute takes long to say so, and there are many
        "_orig_mod" in module._modules or vars(module).get("_compiled_call_impl") is not None
        for module in chain(modules, *map(every_module, around))
    )


def may_be_compiled(model: nn.Module) -> bool:
    """Whether a `generate` of its own would have it compiled for a cache of fixed size: transformers does so on a GPU.

    On a CPU only where torch's compiler was loaded for something else; to load it takes seconds.
    """
    return "torch._dynamo" in sys.modules or any(each.device.type not in ("cpu", "meta") for each in model.parameters())


@contextmanager
def eagerly(compiled: bool) -> Iterator[None]:
    """Inside, what was compiled runs as it was written: compiled code does not call the hooks of its modules."""
    if not compiled:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
