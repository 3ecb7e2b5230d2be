"""What a tensor holds, to the last bit, as a digest that is the same wherever it lies and however it is laid out.

Whole tensors go through xxh3_128, which is as fast as memory is. On the CPU the hash reads the tensor's own memory;
from other devices, and of tensors that are not contiguous, it gets one piece after the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from ...errors import ModelError
from .values import text_of

NUMBERS = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
}
PIECE = 1 << 25  # bytes that are copied at once: enough to keep a bus busy, and never a second copy of a large tensor


def digest_of(tensor: Tensor) -> str:
    """The digest of a tensor's data type, shape and values, 32 hexadecimal digits.

    A tensor that is made of others, as quantised and sharded ones are, is told by these and by what it says of itself.

    Raises:
        ModelError: it has no values, or none that can be read.
    """
    found = xxhash.xxh3_128()
    _put(found, tensor)
    return found.hexdigest()


def _put(found: Any, tensor: Tensor) -> None:
    if _is_plain(tensor):  # nearly all there are: as below, in a tenth of the calls
        found.update(f"{tensor.dtype}{tuple(tensor.shape)};".encode())
        found.update(tensor.detach().view(torch.uint8).numpy())
        return
    tensor = tensor.detach()
    if hasattr(tensor, "full_tensor"):  # shared among processes, each of which asks for it
        tensor = tensor.full_tensor()
    found.update(f"{tensor.dtype}{tuple(tensor.shape)};".encode())
    parts = _parts(tensor)
    if parts is not None:
        about, inner = parts
        found.update(f"{type(tensor).__qualname__}{text_of(about)};".encode())
        for name, part in inner.items():
            found.update(f"{name}:".encode())
            _put(found, part)
        return
    if tensor.device.type == "meta":
        raise ModelError("a tensor on the meta device has no values")
    try:
        for piece in _pieces(tensor):
            found.update(_here(piece).numpy())
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise ModelError(
            f"the values of a {type(tensor).__name__} of {tensor.dtype} on {tensor.device} cannot be read: {error}"
        ) from error


def _is_plain(tensor: Tensor) -> bool:
    """Whether the values of a tensor are its memory, which can be read here."""
    return (
        type(tensor) in (nn.Parameter, Tensor)
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        and tensor.dtype in NUMBERS
        and tensor.ndim > 0
        and tensor.is_contiguous()
        and tensor.stride(-1) == 1
        and not tensor.is_neg()
    )


def _parts(tensor: Tensor) -> tuple[Any, dict[str, Tensor]] | None:
    """What a tensor says of itself and the tensors that it is made of; None for plain ones."""
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        parts = {"crow": tensor.crow_indices(), "col": tensor.col_indices(), "values": tensor.values()}
        return str(tensor.layout), parts
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        parts = {"ccol": tensor.ccol_indices(), "row": tensor.row_indices(), "values": tensor.values()}
        return str(tensor.layout), parts
    if tensor.layout == torch.sparse_coo:
        tensor = tensor.coalesce()
        return str(tensor.layout), {"indices": tensor.indices(), "values": tensor.values()}
    if tensor.is_quantized:  # torch's own, of before torchao
        if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
            return [str(tensor.qscheme()), tensor.q_scale(), tensor.q_zero_point()], {"values": tensor.int_repr()}
        scales = {"scales": tensor.q_per_channel_scales(), "zeros": tensor.q_per_channel_zero_points()}
        return [str(tensor.qscheme()), tensor.q_per_channel_axis()], {"values": tensor.int_repr(), **scales}
    if hasattr(type(tensor), "__tensor_flatten__"):
        names, about = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
        return about, {name: getattr(tensor, name) for name in names if getattr(tensor, name) is not None}
    return None


def _pieces(tensor: Tensor) -> Iterator[Tensor]:
    """The bytes of a tensor in the order of its entries, in contiguous pieces that need no copy of the whole."""
    tensor = tensor.resolve_conj().resolve_neg()
    if not tensor.numel():
        return
    if tensor.is_contiguous():
        flat = tensor.reshape(-1)
        if flat.stride(0) != 1:  # of a single entry no stride is wrong, but `view` minds
            flat = flat.repeat(1)
        flat = flat.view(torch.uint8)
        yield from [flat] if flat.device.type == "cpu" else flat.split(PIECE)
        return
    while len(tensor) == 1:  # what cannot be contiguous has a dimension that is longer
        tensor = tensor[0]
    for rows in tensor.split(max(1, PIECE * len(tensor) // (tensor.numel() * tensor.element_size()))):
        yield from _pieces(rows.contiguous())


def _here(piece: Tensor) -> Tensor:
    if piece.device.type != "cuda":
        return piece.cpu()
    here = torch.empty(piece.shape, dtype=piece.dtype, pin_memory=True)  # torch keeps such memory and gives it again
    return here.copy_(piece)
