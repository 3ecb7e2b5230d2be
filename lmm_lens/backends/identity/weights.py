"""The weights and buffers of a model as they are now, without `state_dict()`.

`state_dict()` is not for looking: that of bitsandbytes converts weights on the way, and damages a model on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ..placement import fetched
from . import bitsandbytes
from .marks import digests_of
from .modules import Part, is_passing, run_of
from .tensors import digest_of


def weights_of(model: nn.Module, parts: list[Part]) -> dict[str, str]:
    """A digest of each parameter, buffer and other tensor that a module holds, by its name.

    Raises:
        ModelError: a tensor has no values, or none that can be read.
    """
    held = [(part, name, tensor) for part in parts for name, tensor in _tensors_of(part)]
    once = list({id(tensor): (part, name, tensor) for part, name, tensor in reversed(held)}.values())  # tied ones
    # those of bitsandbytes are told by what its modules hold beside them
    alone = [None if bitsandbytes.is_in(part.module) else tensor for part, _, tensor in once]
    digests = digests_of(alone, lambda index: _digest(model, *once[index]))
    known = {id(tensor): digest for (_, _, tensor), digest in zip(once, digests, strict=True)}
    return {f"{part.path}.{name}": known[id(tensor)] for part, name, tensor in held}


def dtype_of(parts: list[Part]) -> str:
    """The data types of the parameters, or what stands for them in a quantised model: "float32", "Params4bit nf4"."""
    parameters = [tensor for part in parts for tensor in part.module._parameters.values() if tensor is not None]
    plain = {str(tensor.dtype).removeprefix("torch.") for tensor in parameters if type(tensor) is nn.Parameter}
    return ", ".join(sorted(plain | {_kind(tensor) for tensor in parameters if type(tensor) is not nn.Parameter}))


def _kind(tensor: Tensor) -> str:
    if bitsandbytes.is_quantised(tensor):
        return bitsandbytes.kind_of(tensor)
    if hasattr(type(tensor), "__tensor_flatten__") and not hasattr(tensor, "full_tensor"):
        return type(tensor).__name__
    return str(tensor.dtype).removeprefix("torch.")


def _tensors_of(part: Part) -> Iterator[tuple[str, Tensor]]:
    """Parameters, buffers, persistent or not, and the plain tensors that its run does not write."""
    for held in (part.module._parameters, part.module._buffers):
        yield from ((name, tensor) for name, tensor in held.items() if tensor is not None)
    plain = [(name, value) for name, value in part.unusual if isinstance(value, Tensor)]
    if plain:
        run = run_of(type(part.module))
        for name, tensor in plain:
            # what is on "meta" was made while the shape alone was loaded, and can take no part in a run
            if tensor.device.type != "meta" and not is_passing(name, run):
                yield name, tensor


def _digest(model: nn.Module, part: Part, name: str, tensor: Tensor) -> str:
    if bitsandbytes.is_in(part.module):
        return bitsandbytes.digest_of(model, part.module, name, tensor)
    if tensor.device.type == "meta":
        return digest_of(fetched(model, f"{part.name}.{name}".lstrip(".")))
    return digest_of(_lasting(part.module, name, tensor))


def _lasting(module: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """The frequencies that a rotary embedding starts from, where those in use are of the last prompt's length."""
    if not name.endswith("inv_freq"):
        return tensor
    original: Any = getattr(module, f"{name.removesuffix('inv_freq')}original_inv_freq", None)
    kinds: Any = getattr(module, "rope_type", None)
    if not isinstance(original, Tensor) or original.device.type == "meta":
        return tensor
    layer = name.removesuffix("_inv_freq")
    kind = kinds.get(layer, "") if isinstance(kinds, dict) else str(kinds)
    longest = getattr(module, f"{layer}_max_seq_len_cached", getattr(module, "max_seq_len_cached", 0))
    has_grown = "dynamic" in kind and longest > getattr(module, "original_max_seq_len", longest)
    return original.to(tensor) if kind == "longrope" or has_grown else tensor
