"""What a decoder layer is made of, found by watching it run: projections, norms, and what is done to their outputs.

    read by attention     q, k, v = W norm(x)                  x the stream that enters the layer
    written by a head     s * gain * (W_O^h z_h)               gain and s of a norm behind attention, else 1; gain too
                                                               of a layer that scales each channel (InternViT)
    read by the MLP       norm'(x + attention), in parallel blocks norm'(x)

A norm behind attention (Gemma 2 and 3, GLM-4V) divides by the size of what all heads write together, so that what one
head writes is not its own alone. Here the scale s is taken as each run has it: then the heads' parts add up exactly.

Tensors are followed by where they lie in memory: a norm is the module that was given the stream and whose output went
into the projections. What cannot be followed so is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..replay import UnfitError
from .watching import Seen, close, projections_of, tolerance

if TYPE_CHECKING:
    from ..adapters import Layer


@dataclass(frozen=True, eq=False)
class Parts:
    """The modules of one layer between which edges run.

    Attributes:
        layer: its modules as an adapter names them.
        q, k, v: the projections.
        norm, mlp_norm: what the stream goes through before it is read; None for nothing.
        after, mlp_after: what an output goes through before it is written; None for nothing.
        factor, mlp_factor: by which it is multiplied when it is written.
        parallel: whether the feed-forward part reads what attention reads.
        n_kv: key-value heads.
        scale, mlp_scale: by which each channel of it is multiplied; None for none.
    """

    layer: Layer
    q: nn.Module
    k: nn.Module
    v: nn.Module
    norm: nn.Module | None
    mlp_norm: nn.Module | None
    after: nn.Module | None
    mlp_after: nn.Module | None
    factor: float
    mlp_factor: float
    parallel: bool
    n_kv: int = 0
    scale: Float[Tensor, " d_model"] | None = None
    mlp_scale: Float[Tensor, " d_model"] | None = None

    @property
    def gain(self) -> Float[Tensor, " d_model"] | None:
        """The gain of the norm behind attention; None for no such norm."""
        return None if self.after is None else _gain(self.after, self.layer.output_projection)

    def projections(self) -> list[tuple[Float[Tensor, "head d_out d_model"], Float[Tensor, "head d_out"] | None]]:
        """Weight and bias of q, k and v, head by head."""
        counts = (self.layer.n_heads, self.n_kv, self.n_kv)
        return [by_head(module, n) for module, n in zip((self.q, self.k, self.v), counts, strict=True)]

    def outputs(self) -> Float[Tensor, "head d_head d_model"]:
        """W_O head by head, times the gain of the norm behind it and the scale of each channel."""
        assert self.layer.output_projection is not None
        weight, _ = linear(self.layer.output_projection)
        gain = self.gain
        for each in (gain, self.scale):
            weight = weight if each is None else weight * each[:, None]
        found: Tensor = weight.T.unflatten(0, (self.layer.n_heads, -1))
        return found


def parts_of(index: int, layer: Layer, seen: Seen) -> Parts:
    """Take a layer apart by what one forward of it did.

    Raises:
        UnfitError: it reads or writes the residual stream in a way that is not known.
    """
    name = f"layer {index} ({type(layer.module).__name__})"
    if layer.attention is None:
        raise UnfitError(f"{name} has no attention heads, and what stands in their place has no edges")
    if layer.is_cross_attention:
        raise UnfitError(f"{name} attends to pictures by cross-attention, whose keys are no tokens of the sequence")
    found = projections_of(layer)
    if any(module is None for module in found) or not {*map(id, found)} <= {id(m) for m, _, _ in seen.calls}:
        raise UnfitError(f"the attention of {name} does not project q, k and v one by one")
    q, k, v = found
    assert q is not None and k is not None and v is not None  # noqa: PT018 (one fact)
    read = seen.given(q)
    if not all(_same(read, seen.given(each)) for each in (k, v)):
        raise UnfitError(f"q, k and v of {name} are not made of the same input")
    norm = _before(read, seen.hidden, seen, layer, name)
    if layer.mlp is None or not any(module is layer.mlp for module, _, _ in seen.calls):
        raise UnfitError(f"{name} has no feed-forward module that was recognised")
    attended, after = _written(layer.attention, seen, layer)
    fed, mlp_after = _written(layer.mlp, seen, layer)
    mlp_norm = _mlp_norm(seen, layer)
    mid = seen.given(mlp_norm or layer.mlp).reshape(seen.hidden.shape)
    parallel = _same(mid, seen.hidden)
    between = seen.hidden if parallel else mid
    scale: Tensor | None = None
    mlp_scale: Tensor | None = None
    if parallel:
        factor = mlp_factor = 1.0
        if not close(seen.out, seen.hidden + attended + fed):
            raise UnfitError(f"{name} does not only add attention and feed-forward part to the residual stream")
    else:
        factor, scale = _factor(mid - seen.hidden, attended, mid, name)
        mlp_factor, mlp_scale = _factor(seen.out - between, fed, seen.out, name)
    return Parts(
        layer,
        q,
        k,
        v,
        norm,
        mlp_norm,
        after,
        mlp_after,
        factor,
        mlp_factor,
        parallel,
        scale=scale,
        mlp_scale=mlp_scale,
    )


def _before(read: Tensor, stream: Tensor, seen: Seen, layer: Layer, name: str) -> nn.Module | None:
    """The norm between the stream and what is read of it."""
    if _same(read, stream):
        return None
    for module, given, returned in seen.calls:
        if _same(returned, read) and _same(given, stream):
            return module
    raise UnfitError(f"what {name} reads is not one norm of the stream that enters it")


def _mlp_norm(seen: Seen, layer: Layer) -> nn.Module | None:
    read = seen.given(layer.mlp)
    found = [module for module, _, returned in seen.calls if _same(returned, read) and module is not layer.mlp]
    return found[0] if found else None


def _written(module: nn.Module, seen: Seen, layer: Layer) -> tuple[Tensor, nn.Module | None]:
    """What a module writes into the stream, and the norm behind it, if there is one."""
    returned = seen.returned(module)
    for other, given, normed in seen.calls:
        if other in (module, layer.output_projection) or _same(given, normed):  # dropout hands on what it is given
            continue
        if _same(given, returned):
            return normed.reshape(seen.hidden.shape), other
    return returned.reshape(seen.hidden.shape), None


def _factor(change: Tensor, written: Tensor, stream: Tensor, name: str) -> tuple[float, Tensor | None]:
    """By what an output is multiplied when it is added to the stream: a number, or one for each channel."""
    product, square = (change * written).double(), written.double().square()
    factor = float(product.sum() / square.sum().clamp_min(1e-30))
    factor = 1.0 if abs(factor - 1) < 1e-2 else factor
    most = tolerance(stream) * stream.abs().max().double()
    if (change - factor * written).abs().max().double() <= most:
        return factor, None
    by_channel = (product.flatten(0, -2).sum(0) / square.flatten(0, -2).sum(0).clamp_min(1e-30)).to(written.dtype)
    if not (change - by_channel * written).abs().max().double() <= most:
        raise UnfitError(f"{name} does not only add attention and feed-forward part to the residual stream")
    return 1.0, by_channel


def _same(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.numel() == other.numel()


# ---------------------------------------------------------------------- weights


def linear(module: nn.Module) -> tuple[Float[Tensor, "d_out d_in"], Float[Tensor, " d_out"] | None]:
    """Weight and bias of a module that is linear, whatever holds them: quantised, adapted, offloaded."""
    if type(module) is nn.Linear and module.weight.device.type != "meta":
        return module.weight.detach(), None if module.bias is None else module.bias.detach()
    known: Any = next((p for p in module.parameters() if p.is_floating_point()), None)
    width: Any = getattr(module, "in_features", None)
    if width is None or known is None:
        raise UnfitError(f"the weights of {type(module).__name__} are not known")
    with torch.no_grad():
        zero = torch.zeros(1, width, dtype=known.dtype, device=known.device)
        bias = module(zero)
        weight = module(torch.eye(width, dtype=known.dtype, device=known.device)) - bias
    return weight.T, bias[0]


def by_head(module: nn.Module, n: int) -> tuple[Tensor, Tensor | None]:
    """Weight [head, d_out, d_in] and bias [head, d_out] of a projection into n heads."""
    weight, bias = linear(module)
    return weight.unflatten(0, (n, -1)), None if bias is None else bias.unflatten(0, (n, -1))


def _gain(norm: nn.Module, projection: nn.Module | None) -> Float[Tensor, " d_model"]:
    """The gain of an RMS norm: what it makes of a vector of equal numbers."""
    assert projection is not None
    like = next(norm.parameters(), None)
    if like is None:
        raise UnfitError(f"{type(norm).__name__} behind attention has no gain")
    with torch.no_grad():
        gain: Tensor = norm(torch.full_like(like, 100.0)[None])[0]
    return gain
