"""Pick the adapter of a model by its `model_type`."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from torch import nn

from lmm_lens.errors import ModelError

from .base import Adapter
from .classes import REFUSED
from .generic import Generic


@cache
def built_in() -> tuple[type[Adapter], ...]:
    """The adapters of this folder, one file a family, in the order of their names."""
    package = __name__.rpartition(".")[0]
    modules = [
        importlib.import_module(f"{package}.{found.name}")
        for found in pkgutil.iter_modules(importlib.import_module(package).__path__)
    ]
    own = [
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Adapter) and value.__module__ == module.__name__
    ]
    return tuple(sorted((adapter for adapter in own if adapter.model_types), key=lambda adapter: adapter.family))


@cache
def families() -> dict[str, type[Adapter]]:
    """Every known `model_type` and its adapter; installed packages override the built-in ones."""
    known = {model_type: adapter for adapter in built_in() for model_type in adapter.model_types}
    for entry in entry_points(group="lmm_lens.adapters"):
        adapter = entry.load()
        known |= {model_type: adapter for model_type in adapter.model_types}
    return known


def adapter_for(model: nn.Module, processor: Any = None) -> Adapter:
    """The adapter of a loaded model: its family's, or `Generic`.

    Raises:
        ModelError: the model is not a Hugging Face model, has no image token, or is of another kind.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type is None:
        raise ModelError(
            f"expected a Hugging Face model with a config, given {type(model).__name__}\n"
            "  load one with Lens.from_pretrained(name), or wrap one with Lens(model, processor)"
        )
    if model_type not in families() and model_type in REFUSED:
        raise ModelError(
            f"{type(model).__name__} ({model_type}) is {REFUSED[model_type]}\n"
            "  lmm-lens reads decoders whose sequence holds the visual tokens"
        )
    return families().get(model_type, Generic).variant(model)(model, processor)
