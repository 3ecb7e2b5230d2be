"""Twins: other frameworks run a copy that shares the model's weights. Is it still what its model is?

What is written into a weight is seen by both. Whatever else a user does to a model after a lens was made is not: a
weight replaced by another, an adapter switched, a hook put on, another attention function chosen. So the structure of
the model is looked at before each run, and a twin that has gone stale is made anew.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from torch import nn

from ..prompts.text_config import text_config_of
from .native.interface import copying, implementation_of
from .placement import accelerate_hooks

Structure = tuple[Any, ...]

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
    """
    memo: dict[int, Any] = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    hooks = [(getattr(module, name), OrderedDict[int, Any]()) for module in model.modules() for name in TORCH_HOOKS]
    memo |= {id(mine): copied for mine, copied in hooks}
    for module in model.modules():
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


def structure_of(model: nn.Module) -> Structure:
    """What a copy that shares the weights has of a model, by identity: two are equal if nothing was exchanged."""
    parts: list[Any] = []
    for module in model.modules():
        own = vars(module)
        parts += (id(module), module.training, id(own.get("forward")))
        parts += (id(tensor) for tensor in own["_parameters"].values())
        parts += (id(tensor) for tensor in own["_buffers"].values())
        parts += (id(hook) for hook in _hooks(module))
        if "_active_adapter" in own:
            parts += (repr(own.get(name)) for name in ADAPTER_STATE)
    config: Any = getattr(model, "config", None)
    if config is not None:
        parts.append(implementation_of(text_config_of(config)))
    return tuple(parts)


def hooked_by_user(model: nn.Module) -> list[str]:
    """The modules on which somebody has put forward hooks of torch, by name."""
    return [name or "the model itself" for name, module in model.named_modules() if any(True for _ in _hooks(module))]


def _hooks(module: nn.Module) -> Iterator[Any]:
    for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
        if not (getattr(hook, "__module__", None) or "").startswith(OURS):
            yield hook
