"""A second device for a machine that has none: tensors in the CPU's memory that insist on being somewhere else.

`"pretend:0"` is a device like "cuda:0": `.to` moves there and back, factories make tensors there, and an operation on
tensors of both devices is an error. So accelerate dispatches layers onto it, and code that forgets to move a tensor
between layers fails as it would on a GPU. It stands on torch's support for backends written in Python.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _DummyPrivateUse1Hook,
    _setup_privateuseone_for_python_backend,
)

NAME, DEVICE = "pretend", "pretend:0"
CPU = torch.device("cpu")
MOVES = ("aten._to_copy", "aten.copy_")  # between devices
INDEXES = ("aten.index.", "aten.index_put", "aten._index_put_impl_")  # their indices may also lie on the CPU


class _Module(_DummyBackendModule):
    def is_available(self) -> bool:
        return False  # nobody is to choose it unasked

    def device_count(self) -> int:
        return 0


class _Hook(_DummyPrivateUse1Hook):
    def is_available(self) -> bool:
        return False


class Elsewhere(Tensor):
    """A tensor on the pretended device; `here` are its values."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> "Elsewhere":
        tensor = Tensor._make_wrapper_subclass(
            cls, here.shape, here.stride(), here.storage_offset(), dtype=here.dtype, device=DEVICE
        )
        tensor.here = here
        return tensor

    def __repr__(self) -> str:
        return f"Elsewhere({self.here})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        return compute(operation, args, kwargs or {})


def compute(operation: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Check that the operation stays on one device, and do it on the values."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    devices = {tensor.device for tensor in tensors if tensor.ndim} or {tensor.device for tensor in tensors}
    name = str(operation)
    if len(devices) > 1 and not name.startswith(MOVES):
        if not name.startswith(INDEXES) or tensors[0].device == CPU:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices in {name}: {devices}"
            )
        devices = {tensors[0].device}
    asked = kwargs.get("device")
    device = (
        torch.device(asked)
        if asked is not None
        else tensors[0].device
        if name.startswith(MOVES)
        else max(devices, key=str)
    )
    known: dict[int, Elsewhere] = {}

    def values(leaf: Any) -> Any:
        if not isinstance(leaf, Elsewhere):
            return leaf
        known[id(leaf.here)] = leaf
        return leaf.here

    if device.type == NAME and asked is not None:
        kwargs = {**kwargs, "device": CPU}
    out = operation(*tree_map(values, args), **tree_map(values, kwargs))
    if device.type != NAME:
        return out
    # what an operation in place returns is the tensor it was given
    return tree_map(lambda leaf: known.get(id(leaf), Elsewhere(leaf)) if isinstance(leaf, Tensor) else leaf, out)


def _empty(size: Sequence[int], **options: Any) -> Tensor:
    return Elsewhere(torch.empty(size, dtype=options.get("dtype")))


def _empty_strided(size: Sequence[int], stride: Sequence[int], **options: Any) -> Tensor:
    return Elsewhere(torch.empty_strided(size, stride, dtype=options.get("dtype")))


def _copy_from(source: Any, target: Elsewhere, non_blocking: bool = False) -> Elsewhere:
    target.here.copy_(getattr(source, "here", source))
    return target


KERNELS: dict[str, Callable[..., Tensor]] = {
    "empty.memory_format": _empty,
    "empty_strided": _empty_strided,
    "_copy_from": _copy_from,
}
"""What all factories and moves are made of; every other operation finds an `Elsewhere` and so goes to `compute`."""

_setup_privateuseone_for_python_backend(NAME, _Module(), _Hook())
LIBRARY = torch.library.Library("aten", "IMPL")
for _name, _kernel in KERNELS.items():
    LIBRARY.impl(_name, _kernel, "PrivateUse1")
