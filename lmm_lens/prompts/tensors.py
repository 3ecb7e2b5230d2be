"""What a user's own processor made, as tensors that the model takes: arrays and lists too, and of the model's dtype."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import PromptError

PER_TOKEN = ("token_type_ids", "mm_token_type_ids")
"""Inputs of one number a token, beside the mask."""
NESTS = (dict, list, tuple)
"""What remote code takes tensors in; subclasses of these (ModelOutput, ...) stay as they are."""


def tensors_of(inputs: Any, dtypes: Sequence[torch.dtype]) -> dict[str, Any]:
    """The inputs with arrays and lists of numbers as tensors, whole numbers of 64 bits; anything else stays as it is.

    Args:
        inputs: a mapping, such as a processor's BatchFeature.
        dtypes: of the model's weights, its own first. Pixels of one that it has nowhere are brought to its own.

    Raises:
        PromptError: they are no mapping, rows are of different lengths, ids come with embeddings, token types do not
            fit the ids, or pixels are no floats.
    """
    if not isinstance(inputs, Mapping):
        raise PromptError(
            f"expected inputs as a mapping of names to tensors, given {type(inputs).__name__}\n"
            "  as processor(text=..., images=..., return_tensors='pt') returns them"
        )
    made = {name: _as_tensor(name, value) for name, value in inputs.items() if value is not None}
    if "inputs_embeds" in made:
        raise PromptError(
            "inputs_embeds were given, which models take in place of input_ids, and which do not tell visual tokens\n"
            "  give input_ids and pixel_values; or call the model yourself, inside lens.apply(...), to edit it"
        )
    ids = made.get("input_ids")
    for name in PER_TOKEN:
        types = made.get(name)
        if isinstance(types, Tensor) and isinstance(ids, Tensor) and ids.ndim == 2 and types.shape != ids.shape:
            raise PromptError(
                f"{name} must be [batch, position] like input_ids {tuple(ids.shape)}, given {tuple(types.shape)}\n"
                "  process text and pictures together, with the model's own processor"
            )
    for name, value in made.items():
        if holds_pixels(name, value):
            made[name] = mapped(
                value, lambda x: x if x.dtype in dtypes or not holds_pixels("pixels", x) else x.to(dtypes[0])
            )
        elif not isinstance(value, Tensor):
            continue
        elif "pixel_values" in name:
            raise PromptError(
                f"expected {name} as floats, as processors make them, given {value.dtype}\n"
                "  give the pictures themselves to lens.prompt(text, images=...), or to the processor"
            )
        elif not value.is_floating_point() and value.dtype != torch.bool:
            made[name] = value.long()  # as processors count; models mix it with their own
    return made


def holds_pixels(name: str, value: Any) -> bool:
    """Whether an input is what the model sees: pixels, or features of them; also in lists and dictionaries."""
    if name == "mm_encoder_outputs":
        return True
    if type(value) in NESTS:
        return any(holds_pixels(name, each) for each in tensors_in(value))
    is_float = isinstance(value, Tensor) and value.is_floating_point()
    return is_float and ("pixel" in name or value.ndim > 2) and "mask" not in name


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A value with each tensor in it changed, in lists and dictionaries too; itself where nothing is changed."""
    if isinstance(value, Tensor):
        return change(value)
    if type(value) not in NESTS:
        return value
    old = list(value.values() if isinstance(value, dict) else value)
    new = [mapped(each, change) for each in old]
    if all(map(operator.is_, old, new)):
        return value
    return dict(zip(value, new, strict=True)) if isinstance(value, dict) else type(value)(new)


def fresh(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs for one call: remote code writes into ids, and takes pictures out of lists, that the next call needs."""
    return {name: _copied(value) for name, value in inputs.items()}


def _copied(value: Any) -> Any:
    """Lists, dictionaries and whole numbers as copies; pixels, by which passes are told apart, themselves."""
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else value.clone()
    if type(value) is dict:
        return {name: _copied(each) for name, each in value.items()}
    return type(value)(map(_copied, value)) if type(value) in (list, tuple) else value


def tensors_in(value: Any) -> Iterator[Tensor]:
    """A tensor itself, or the tensors in lists and dictionaries, in their order."""
    if isinstance(value, Tensor):
        yield value
    elif type(value) in NESTS:
        for each in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(each)


def _as_tensor(name: str, value: Any) -> Any:
    """Numbers in an array or in lists as a tensor; tensors of one shape in a list as one; anything else as it is."""
    import numpy as np

    if isinstance(value, (list, tuple)) and value and all(isinstance(each, Tensor) for each in value):
        return torch.stack(list(value)) if len({each.shape for each in value}) == 1 else value
    if not isinstance(value, (np.ndarray, list, tuple)) or _holds_tensors(value):
        return value
    try:
        array = np.asarray(value)
    except ValueError as error:  # rows of different lengths
        if name not in ("input_ids", "attention_mask", *PER_TOKEN):
            return value
        raise PromptError(
            f"{name} has rows of different lengths, so it is no tensor\n"
            "  give the processor padding=True and return_tensors='pt'"
        ) from error
    return torch.as_tensor(array) if array.dtype.kind in "biuf" else value


def _holds_tensors(value: Any) -> bool:
    """Whether a list has tensors somewhere in it, which some models take of different shapes."""
    return isinstance(value, Tensor) or (isinstance(value, (list, tuple)) and any(_holds_tensors(x) for x in value))
