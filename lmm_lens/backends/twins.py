"""Is a twin still what its model is? Other frameworks run a copy that shares the model's weights.

What is written into a weight is seen by both. Whatever else a user does to a model after a lens was made is not: a
weight replaced by another, an adapter switched, a hook put on, another attention function chosen. So the structure of
the model is looked at before each run, and a twin that has gone stale is made anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from ..prompts.text_config import text_config_of

Structure = tuple[Any, ...]

OURS = ("lmm_lens.", "transformers.", "accelerate.", "nnsight.", "transformer_lens.")
"""Whose hooks stand on a model without its user having put them there."""
ADAPTER_STATE = ("_active_adapter", "_disable_adapters", "merged_adapters", "scaling")
"""What tells which of PEFT's adapters act, and how much."""


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
        parts.append(getattr(text_config_of(config), "_attn_implementation", None))
    return tuple(parts)


def hooked_by_user(model: nn.Module) -> list[str]:
    """The modules on which somebody has put forward hooks of torch, by name."""
    return [name or "the model itself" for name, module in model.named_modules() if any(True for _ in _hooks(module))]


def _hooks(module: nn.Module) -> Iterator[Any]:
    for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
        if not (getattr(hook, "__module__", None) or "").startswith(OURS):
            yield hook
