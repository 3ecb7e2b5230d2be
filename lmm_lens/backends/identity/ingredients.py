"""The ingredients of an identity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface

from ..native.interface import implementation_of
from .code import code_of, hooks_of
from .modules import Part, adapters_of, own_class, parts_of, structure_of
from .processors import chat_template_of, processor_of
from .values import digest_of_value, is_known
from .weights import dtype_of, weights_of

RECORDED_AS = 2
"""The way of recording; identities of another way cannot be compared. 1, without saying so, was a sample of weights."""

NOT_ANSWERS = {
    *("_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "_from_model_config"),
    *("architectures", "dtype", "torch_dtype", "attn_implementation", "_attn_implementation"),
}
"""Entries of configs on which no answer depends, or that are told apart: where it came from, data types."""


def identity_of(model: nn.Module, processor: Any, elsewhere: str | None = None) -> dict[str, Any]:
    """What tells a model with its processor from others, of JSON types; digests have 32 hexadecimal digits.

    Costs about what reading the weights costs. Where a weight is shared among processes, all of them must ask.

    Args:
        model: the model.
        processor: its processor, or None.
        elsewhere: what stands for the weights of a model that only a server has.

    Raises:
        ModelError: the weights have no values, or none that can be read.
    """
    parts = parts_of(model)
    inner: Any = next(part.module for part in parts if not part.is_wrapper)
    paths = {id(part.module): part.path for part in parts}
    held = _configs_of(parts)
    each = {id(config): config for config in held.values()}  # most modules hold the same one
    entries = {key: _entries(config) for key, config in each.items()}
    digest_of = {key: digest_of_value(content) for key, content in entries.items()}
    digests = {path: digest_of[id(config)] for path, config in held.items()}
    configs = list(dict.fromkeys(digests.values()))
    which = {path: configs.index(digest) for path, digest in digests.items()}  # else where configs stand would be lost
    adapters, hooks, code = adapters_of(parts), hooks_of(parts), code_of(parts)
    config, generation = getattr(inner, "config", None), getattr(inner, "generation_config", None)
    content = entries[id(config)] if id(config) in entries else _entries(config)
    return {
        "recorded_as": RECORDED_AS,
        "model": own_class(type(inner)).__name__,
        "weights": elsewhere or digest_of_value(weights_of(model, parts)),
        "dtype": dtype_of(parts),
        "modules": digest_of_value([structure_of(parts), which]),
        "code": digest_of_value(code, paths) if code else "none",
        "hooks": f"{len(hooks)}: {digest_of_value(hooks, paths)}" if hooks else "none",
        "adapters": f"{_named(adapters)}: {digest_of_value(adapters)}" if adapters else "none",
        "attention": _attention_of(held),
        "config": digest_of_value([content, configs]),
        "generation_config": "none" if generation is None else digest_of_value(_entries(generation)),
        "processor": processor_of(processor),
        "chat_template": chat_template_of(processor),
    }


def _configs_of(parts: list[Part]) -> dict[str, Any]:
    """The configs that modules hold, by path."""
    held = [(f"{part.path}.{name}", value) for part in parts for name, value in part.unusual]
    configs = {key for key, value in {id(value): value for _, value in held}.items() if _is_config(value)}
    return {path: value for path, value in held if id(value) in configs}


def _is_config(value: Any) -> bool:
    return hasattr(value, "to_dict") and hasattr(value, "model_type") and not isinstance(value, type)


def _attention_of(configs: Mapping[str, Any]) -> str:
    """The attention functions that configs name: as in "sdpa", or all of them and a digest of which is where."""
    name_of = {
        id(config): implementation_of(config) for config in {id(each): each for each in configs.values()}.values()
    }
    names = {path: name_of[id(config)] for path, config in configs.items()}
    used = sorted(set(names.values()))
    registries = (AttentionInterface(), AttentionMaskInterface())
    functions = {name: [registry.get(name) for registry in registries] for name in used}
    own = {name: given for name, given in functions.items() if not all(f is None or is_known(f) for f in given)}
    digest = f": {digest_of_value([names, own])}" if len(used) > 1 or own else ""
    return ", ".join(used) + digest


def _entries(config: Any) -> Any:
    """A config as a mapping, without what is not set."""
    content = config.to_dict() if hasattr(config, "to_dict") else config
    if isinstance(content, Mapping):
        kept = {str(key): _entries(value) for key, value in content.items() if str(key) not in NOT_ANSWERS}
        return {key: value for key, value in kept.items() if value is not None}
    return [_entries(item) for item in content] if isinstance(content, (list, tuple)) else content


def _named(adapters: Mapping[str, Mapping[str, Any]]) -> str:
    """The adapters that act, by name."""
    on = {name for state in adapters.values() if not state["disable_adapters"] for name in state["active_adapters"]}
    return ", ".join(sorted(on)) or "disabled"
