"""Twins: other frameworks run a copy that shares the model's weights. Is it still what its model is?

What is written into a weight is seen by both. Whatever else a user does to a model after a lens was made is not: a
weight replaced by another, an adapter switched, a hook put on, another attention function chosen. So the structure of
the model is looked at before each run, and a twin that has gone stale is made anew.
"""

from __future__ import annotations

import copy
import operator
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..adapters.walker import every_module
from ..errors import ModelError
from ..prompts.text_config import text_config_of
from .identity.modules import is_passing, run_of
from .native.interface import copying, implementation_of
from .placement import accelerate_hooks

PLAIN = (bool, int, float, str, torch.dtype, type(None))
PLAIN_OR_TENSOR = (*PLAIN, torch.Tensor)
OURS = ("lmm_lens.", "transformers.", "accelerate.", "nnsight.", "transformer_lens.")
"""Whose hooks stand on a model without its user having put them there."""
ADAPTER_STATE = ("_active_adapter", "_disable_adapters", "merged_adapters", "scaling")
"""What tells which of PEFT's adapters act, and how much."""

TORCH_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)
"""Where torch keeps the hooks of a module."""


def twin_of(model: nn.Module, keeps_hooks: bool) -> Any:
    """A copy of a model that shares every weight, as its user has it, also while a native lens runs or edits it.

    Args:
        model: what is copied.
        keeps_hooks: whether hooks of torch that its user has put on it stand on the copy too.

    Raises:
        ModelError: it cannot be copied.
    """
    check_copyable(model)
    memo: dict[int, Any] = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    hooks = [(getattr(module, name), OrderedDict[int, Any]()) for module in model.modules() for name in TORCH_HOOKS]
    memo |= {id(mine): copied for mine, copied in hooks}
    for module in model.modules():
        for tensor in _eight_bits(module):
            memo[id(tensor)] = tensor
        for hook in accelerate_hooks(module):  # where accelerate keeps weights that are away between calls
            kept = getattr(hook, "weights_map", None)
            memo[id(kept)] = kept
    with copying(memo):
        twin = copy.deepcopy(model, memo)
    if keeps_hooks:
        for mine, copied in hooks:
            for key, hook in list(mine.items()):
                if not (getattr(hook, "__module__", None) or "").startswith("lmm_lens."):
                    copied[key] = copy.deepcopy(hook, memo)
    return twin


def check_copyable(model: nn.Module) -> None:
    """ModelError for a model whose weights cannot be shared with a copy."""
    if any(base.__name__ == "FSDPModule" for module in model.modules() for base in type(module).__mro__):
        raise ModelError(
            f"{type(model).__name__} is divided by fully_shard, and so cannot be copied, and another framework's "
            "modules stand on a copy\n  use backend='native'"
        )


def _eight_bits(module: Any) -> list[torch.Tensor]:
    """What an 8-bit layer of bitsandbytes computes with, which its first run would take away from the weight."""
    if not hasattr(module, "init_8bit_state"):
        return []
    if getattr(module.weight, "CB", None) is not None:
        module.init_8bit_state()
    return [tensor for tensor in (module.state.CB, module.state.SCB) if tensor is not None]


class Structure:
    """What a model is made of; two are equal if nothing was exchanged or set anew between them.

    Holds what it compares, so that nothing new can come to stand where something old has been freed.
    """

    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Structure) or len(self.parts) != len(other.parts):
            return False
        others = [(one, two) for one, two in zip(self.parts, other.parts, strict=True) if one is not two]
        return all(isinstance(one, PLAIN) and type(one) is type(two) and one == two for one, two in others)

    def has_modules_of(self, other: Structure) -> bool:
        """Whether both are made of the very same modules."""
        own, others = ([part for part in each.parts if isinstance(part, nn.Module)] for each in (self, other))
        return len(own) == len(others) and all(map(operator.is_, own, others))

    __hash__ = None  # type: ignore[assignment]


def structure_of(model: nn.Module) -> Structure:
    """What a copy that shares the weights has of a model: its modules and their settings, tensors, hooks, configs."""
    parts: list[Any] = []
    modules = every_module(model)
    runs = {kind: run_of(kind) for kind in set(map(type, modules))}
    for module in modules:
        own, run = vars(module), runs[type(module)]
        parts += (module, own.get("forward"), *own["_parameters"].values(), *own["_buffers"].values(), *_hooks(module))
        for name, value in own.items():
            if name[0] == "_" or not isinstance(value, PLAIN_OR_TENSOR):
                continue
            if name == "training" or not is_passing(name, run):
                parts += (name, value)
        if "_active_adapter" in own:
            parts += (repr(own.get(name)) for name in ADAPTER_STATE)
    config: Any = getattr(model, "config", None)
    if config is not None:
        parts.append(implementation_of(text_config_of(config)))
        parts += _settings_of(config)
    generation: Any = getattr(model, "generation_config", None)
    if generation is not None:
        parts += _settings_of(generation)
    return Structure(parts)


def _settings_of(config: Any) -> Iterator[Any]:
    """What a config and those in it say; not which attention function, which a native lens changes for a while."""
    for name, value in vars(config).items():
        if hasattr(value, "to_dict"):
            yield from _settings_of(value)
        elif not name.startswith("_attn_implementation"):
            yield from (name, value if isinstance(value, PLAIN) else repr(value))


def hooked_by_user(model: nn.Module) -> list[str]:
    """The modules on which somebody has put forward hooks of torch, by name."""
    return [name or "the model itself" for name, module in model.named_modules() if any(True for _ in _hooks(module))]


def _hooks(module: nn.Module) -> Iterator[Any]:
    for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
        if not (getattr(hook, "__module__", None) or "").startswith(OURS):
            yield hook
