"""The modules of a model: where each stands, what it is, and how it is set."""

from __future__ import annotations

import dataclasses
import types
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from enum import Enum
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...errors import ModelError
from .bytecode import names_in
from .remembered import Remembered
from .values import name_of, package_of

WRAPPERS = {
    ("torch", "OptimizedModule"): "_orig_mod",  # torch.compile
    ("torch", "DistributedDataParallel"): "module",
    ("torch", "DataParallel"): "module",
    ("torch", "CheckpointWrapper"): "_checkpoint_wrapped_module",
    ("peft", "PeftModel"): "base_model",
    ("peft", "BaseTuner"): "model",
}
"""Packages and classes around a module that only pass calls on, and where in them it is."""
NOT_SETTINGS = {
    *("training", "gradient_checkpointing", "loss_type", "name_or_path", "hf_device_map", "all_tied_weights_keys"),
}
"""Attributes on which no answer depends, or, of `training`, not of every module's."""
PLAIN = {bool, int, float, str, type(None)}
"""Types of most attributes, told without a closer look."""
USUAL = PLAIN | {dict, OrderedDict, set, list, tuple}
PASSING = ("long_inv_freq", "max_seq_len_cached")
"""Ends of names of what rotary embeddings keep of the last prompt."""


class Part(NamedTuple):
    """A module in its place.

    Attributes:
        path: its name from the model on, wrappers left out.
        name: its name as `get_submodule` takes it.
        module: the module.
        is_wrapper: whether it is one of `WRAPPERS`.
        unusual: its attributes, and their names, that are neither plain values nor collections.
    """

    path: str
    name: str
    module: nn.Module
    is_wrapper: bool
    unusual: list[tuple[str, Any]]


def parts_of(model: nn.Module) -> list[Part]:
    """Every module, one that stands in several places at each of them.

    Raises:
        ModelError: FSDP1 has glued the weights together.
    """
    return list(_walk(model, "", "", ()))


def _walk(module: nn.Module, path: str, name: str, above: tuple[nn.Module, ...]) -> Iterator[Part]:
    kind: Any = type(module)
    kinds = _kinds_of(kind)
    if ("torch", "FullyShardedDataParallel") in kinds:
        raise ModelError(
            f"the weights of {path or 'the model'} are glued together and cut by FullyShardedDataParallel, "
            "so they cannot be read one by one\n  shard the model with torch.distributed.fsdp.fully_shard"
        )
    inside = next((name for wrapper, name in WRAPPERS.items() if wrapper in kinds), None)
    inside = None if inside is not None and _adds_tokens(module) else inside
    unusual = [item for item in vars(module).items() if type(item[1]) not in USUAL]
    yield Part(path, name, module, inside is not None, unusual)
    for key, child in module._modules.items():
        if child is not None and all(child is not other for other in (module, *above)):
            yield from _walk(child, path if key == inside else _join(path, key), _join(name, key), (*above, module))


@lru_cache(maxsize=4096)
def _kinds_of(kind: type) -> frozenset[tuple[str, str]]:
    return frozenset((package_of(base), base.__name__) for base in kind.__mro__)


def _adds_tokens(module: nn.Module) -> bool:
    """Whether it is PEFT's prompt tuning or one of its kind, which puts tokens before a sequence."""
    configs = getattr(module, "peft_config", None)
    values = configs.values() if isinstance(configs, Mapping) else ()
    return any(getattr(config, "is_prompt_learning", False) for config in values)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def structure_of(parts: list[Part]) -> dict[str, Any]:
    """The class and the settings of each module, by path; of adapters' layers only the class."""
    parts = [part for part in parts if not part.is_wrapper]
    runs = {kind: run_of(kind) for kind in {type(part.module) for part in parts}}
    names = {kind: name_of(own_class(kind)) for kind in runs}
    found: dict[str, Any] = {}
    for path, _, module, *_ in parts:
        run = runs[type(module)]
        settings = {} if is_adapter(module) else _settings_of(module, run)
        if module.training != parts[0].module.training and run.asks_for_training:
            settings["training"] = module.training
        found[path] = [names[type(module)], settings]
    return found


def own_class(kind: type) -> type:
    """A module's class without what fully_shard mixes into it."""
    return next((base for base in kind.__mro__ if not str(base.__module__).startswith("torch.distributed")), kind)


# ---------------------------------------------------------------------- settings


class Run(NamedTuple):
    """What the forward of a class does with the module's attributes.

    Attributes:
        writes: those that it assigns, which are no settings but what the last run has left.
        asks_for_training: whether it does something else in training.
    """

    writes: frozenset[str]
    asks_for_training: bool


_OF_EVERY_MODULE = {value for value in vars(nn.Module).values() if isinstance(value, types.FunctionType)}


def _read_run(kind: type[nn.Module]) -> Run:
    """Read in the code of a forward and of the methods that this calls."""
    todo, done, writes = ["forward", "prepare_inputs_for_generation"], set[str](), set[str]()
    while todo:
        name = todo.pop()
        function: Any = getattr(kind, name, None)
        while hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        if isinstance(function, types.FunctionType) and function not in _OF_EVERY_MODULE and name not in done:
            names = names_in(function.__code__)
            writes |= names.written
            todo += names.read
        done.add(name)
    return Run(frozenset(writes), "training" in done)


run_of = Remembered(_read_run, lambda kind: [vars(base) for base in kind.__mro__ if base not in nn.Module.__mro__])
"""The run of a class of modules."""


def is_passing(name: str, run: Run) -> bool:
    """Whether an attribute of a module is none that is meant to be set, or is what its last run has left."""
    return name[:1] == "_" or name in NOT_SETTINGS or name in run.writes or name.endswith(PASSING)


def _settings_of(module: nn.Module, run: Run) -> dict[str, Any]:
    """The lasting plain attributes: numbers, texts, what is made of them, and mappings that hold tensors."""
    items = ((name, value) for name, value in vars(module).items() if not is_passing(name, run))
    return {name: value for name, value in items if _is_setting(value, run)}


def _is_setting(value: Any, run: Run) -> bool:
    if type(value) in PLAIN:  # nearly all that there is
        return True
    if isinstance(value, Mapping):
        return all(isinstance(item, Tensor) or _is_setting(item, run) for item in value.values())
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(_is_setting(item, run) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and not hasattr(value, "to_dict"):
        held = {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
        return run.writes.isdisjoint(held) and all(_is_setting(item, run) for item in held.values())
    return value is None or isinstance(value, (bool, int, float, str, Enum, torch.dtype))


# ---------------------------------------------------------------------- adapters


def is_adapter(module: nn.Module) -> bool:
    """Whether it is a layer of PEFT that can be switched on and off; of a whole model this is a method."""
    return hasattr(type(module), "disable_adapters") and isinstance(getattr(module, "disable_adapters", None), bool)


def adapters_of(parts: list[Part]) -> dict[str, dict[str, Any]]:
    """How each layer of PEFT is set, by path: which adapters act, how strongly, which are merged into the weights."""
    names = ("active_adapters", "disable_adapters", "merged_adapters", "scaling")
    return {
        path: {**_settings_of(module, run_of(type(module))), **{name: getattr(module, name, None) for name in names}}
        for path, _, module, is_wrapper, _ in parts
        if not is_wrapper and is_adapter(module)
    }
