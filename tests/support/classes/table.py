"""The table of classes: a tiny model of each with tensors of one prompt, as its processor would make them."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.classes.shrunk import tiny_model
from tests.support.models.parts import IMAGE, Inputs, around, seeded

Builder = Callable[[], tuple[nn.Module, Inputs]]
Fill = Callable[[nn.Module], Inputs]

TINY: dict[str, Builder] = {}
SETTINGS: dict[str, dict[str, Any]] = {}
"""What a small size is not enough for, of each class."""


def tiny(model_type: str, **own: Any) -> Callable[[Fill], Fill]:
    """Enters a class; the function below gives the tensors of a prompt for its tiny model.

    Args:
        own: settings that a small size is not enough for.
    """

    def enter(fill: Fill) -> Fill:
        def build() -> tuple[nn.Module, Inputs]:
            model = tiny_model(model_type, **own)
            return model, completed(model, fill(model))

        SETTINGS[model_type] = own
        TINY[model_type] = seeded(build)
        return fill

    return enter


def completed(model: nn.Module, inputs: Inputs) -> Inputs:
    """With the further tensors of each position that the model takes."""
    ids, taken = inputs["input_ids"], inspect.signature(type(model).forward).parameters
    further = {"attention_mask": torch.ones_like(ids), "mm_token_type_ids": (ids == IMAGE).int()}
    return {**{name: value for name, value in further.items() if name in taken}, **inputs}


def run_of(n_tokens: int) -> Tensor:
    """A prompt with one run of image tokens."""
    return around(*[IMAGE] * n_tokens)
