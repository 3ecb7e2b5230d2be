"""Weights that bitsandbytes has quantised, read without touching them.

What belongs to a weight hangs on it and on its module, and the first run on a CPU changes it: 4-bit weights are packed
anew for processors with AVX512-BF16 and their scales rounded to bfloat16, 8-bit scales move to the module, biases take
the data type of the computation. A digest is of what runs, so it is the same before and after.
"""

from __future__ import annotations

import copy
import sys
from contextlib import suppress
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from . import tensors
from .values import digest_of_value, package_of

UNDO = ("packing_format_for_cpu", "original_")  # what a weight keeps to be packed as before


def is_in(module: nn.Module) -> bool:
    """Whether it is a module of bitsandbytes."""
    kind: Any = type(module)
    return _is_its(kind)


def is_quantised(tensor: Tensor) -> bool:
    """Whether it is a weight of bitsandbytes."""
    return _is_its(type(tensor))


@lru_cache(maxsize=4096)
def _is_its(kind: type) -> bool:
    return any(package_of(base) == "bitsandbytes" for base in kind.__mro__)


def kind_of(weight: Any) -> str:
    """As in "Params4bit nf4"."""
    return f"{type(weight).__name__} {getattr(weight, 'quant_type', '')}".strip()


def digest_of(model: nn.Module, module: Any, name: str, tensor: Any) -> str:
    """The digest of a tensor of one of its modules, with everything that belongs to it."""
    computed_in = getattr(module, "compute_dtype", None)
    if not is_quantised(tensor):
        if name == "bias":
            tensor = tensor.to(computed_in or tensor.dtype).float()
        return tensors.digest_of(tensor)
    data = tensor.data.as_subclass(Tensor)
    state = getattr(tensor, "quant_state", None) or getattr(module, "quant_state", None)
    if state is not None:
        data, state = _as_run(module, data, state)
        about = {**_held(state), "computed in": computed_in or getattr(model, "dtype", None)}
        return digest_of_value([data, about])
    run = getattr(module, "state", None)
    found: dict[str, Any] = {name: getattr(run, name, None) for name in ("threshold", "has_fp16_weights")}
    for part in ("CB", "SCB"):
        value = getattr(tensor, part, None)
        found[part] = getattr(run, part, None) if value is None else value
    if found["CB"] is not None and tensors.digest_of(found["CB"]) == tensors.digest_of(data):
        del found["CB"]  # the same memory, or a copy of it
    return digest_of_value([data, {name: value for name, value in found.items() if value is not None}])


def _as_run(module: Any, data: Tensor, state: Any) -> tuple[Tensor, Any]:
    """A 4-bit weight as the processor takes it, which it is from its first run on."""
    pack: Any = getattr(sys.modules["bitsandbytes.functional"], "_convert_weight_packed_for_cpu", None)
    is_packed = pack is None or getattr(state, "packing_format_for_cpu", False)
    if is_packed or data.device.type != "cpu" or not getattr(module, "support_avx512bf16_for_cpu", False):
        return data, state
    with suppress(AssertionError, RuntimeError):  # of a shape that cannot be packed, and so not be run there
        packed, state_of_packed = pack(data, copy.copy(state))
        return packed, state_of_packed
    return data, state


def _held(state: Any) -> dict[str, Any]:
    held = {name: value for name, value in vars(state).items() if not name.startswith(UNDO) and value is not None}
    return {name: _held(value) if hasattr(value, "absmax") else value for name, value in held.items()}
