"""Pick the adapter of a model by its `model_type`."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from typing import Any

from torch import nn

from lmm_lens.errors import ModelError

from .base import Adapter
from .generic import Generic
from .llava import Llava
from .vipllava import VipLlava

BUILT_IN: tuple[type[Adapter], ...] = (Llava, VipLlava)


@cache
def families() -> dict[str, type[Adapter]]:
    """Every known `model_type` and its adapter; installed packages override the built-in ones."""
    known = {model_type: adapter for adapter in BUILT_IN for model_type in adapter.model_types}
    for entry in entry_points(group="lmm_lens.adapters"):
        adapter = entry.load()
        known |= {model_type: adapter for model_type in adapter.model_types}
    return known


def adapter_for(model: nn.Module, processor: Any = None) -> Adapter:
    """The adapter of a loaded model: its family's, or `Generic`.

    Raises:
        ModelError: the model is not a Hugging Face model, or has no image token.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type is None:
        raise ModelError(
            f"expected a Hugging Face model with a config, given {type(model).__name__}\n"
            "  load one with Lens.from_pretrained(name), or wrap one with Lens(model, processor)"
        )
    return families().get(model_type, Generic)(model, processor)
