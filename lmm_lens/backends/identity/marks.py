"""Whether a weight on a GPU is what it was when it was last read.

To read the weights of a model of seven billion from a GPU takes seconds, and its forward tens of milliseconds. So the
digest of a weight is kept beside a mark that the GPU makes of its bits at the speed of its own memory, and weights are
read again where their mark is another one. On the CPU the digest itself costs no more than reading.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

DEVICES = {"cuda"}
LEAST = 1 << 16  # bytes; what is smaller is read sooner than marked
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int32}  # by the size of an entry, see `marks_of`
SEED = 2412
PIECE = 1 << 24  # entries that are made 64 bits wide at once

_KEPT = WeakIdKeyDictionary()  # tensor: its mark, and its digest


def digests_of(tensors: Sequence[Tensor | None], read: Callable[[int], str]) -> list[str]:
    """A digest of each tensor; None stands for one that has to be read each time.

    Args:
        tensors: any.
        read: makes the digest of one, by its index, from its values.
    """
    marked = {index: tensor for index, tensor in enumerate(tensors) if tensor is not None and _can_be_marked(tensor)}
    marks = dict(zip(marked, marks_of(list(marked.values())), strict=True))
    for index, tensor in marked.items():
        if _KEPT.get(tensor, (None, ""))[0] != marks[index]:
            _KEPT[tensor] = marks[index], read(index)
    return [_KEPT[marked[index]][1] if index in marked else read(index) for index in range(len(tensors))]


def marks_of(tensors: Sequence[Tensor]) -> list[tuple[object, ...]]:
    """Of each tensor its type, shape and two sums of its bits, weighted by row and by column, modulo 2^64.

    The weights are odd, so that a change of one entry is always seen, and different, so that a change of several is,
    but for a chance of about 2^-32. Entries of 64 bits are cut in two, for their highest bit weighs the same by all.
    """
    by_device: dict[torch.device, list[int]] = {}
    for index, tensor in enumerate(tensors):
        by_device.setdefault(tensor.device, []).append(index)
    found: dict[int, tuple[object, ...]] = {}
    for device, indices in by_device.items():
        longest = max(max(_rows_and_columns(tensors[index]).shape) for index in indices)
        generator = torch.Generator().manual_seed(SEED)
        weights = torch.randint(-(2**62), 2**62, (2, longest), generator=generator).mul_(2).add_(1).to(device)
        sums = torch.stack([_sums(_rows_and_columns(tensors[index]), weights) for index in indices]).tolist()
        for index, of_bits in zip(indices, sums, strict=True):
            found[index] = tensors[index].dtype, tensors[index].shape, *of_bits
    return [found[index] for index in range(len(tensors))]


def _can_be_marked(tensor: Tensor) -> bool:
    return (
        tensor.device.type in DEVICES
        and type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.layout == torch.strided
        and tensor.is_contiguous()
        and tensor.element_size() in BITS
        and not (tensor.is_quantized or tensor.is_complex() or tensor.is_neg())
        and tensor.numel() * tensor.element_size() >= LEAST
    )


def _rows_and_columns(tensor: Tensor) -> Tensor:
    kind = BITS[tensor.element_size()]
    bits: Tensor = torch.atleast_2d(tensor.detach()).view(kind)
    return bits.flatten(0, -2)


def _sums(bits: Tensor, weights: Tensor) -> Tensor:
    columns = weights.new_zeros(bits.shape[1])
    rows = []
    for piece in bits.split(max(1, PIECE // bits.shape[1])):
        wide = piece.long()  # which a sum would do by itself, with the whole
        columns += wide.sum(0)
        rows.append(wide.sum(1))
    return torch.stack(
        [(torch.cat(rows) * weights[0, : len(bits)]).sum(), (columns * weights[1, : len(columns)]).sum()]
    )
