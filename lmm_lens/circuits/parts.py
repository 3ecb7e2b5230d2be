"""What a decoder layer is made of, found by watching it run: projections, norms, and what is done to their outputs.

    read by attention     q, k, v = W norm(x)                  x the stream that enters the layer
    written by a head     s * gain * (W_O^h z_h)               gain and s of a norm behind attention, else 1
    read by the MLP       norm'(x + attention), in parallel blocks norm'(x)

A norm behind attention (Gemma 2 and 3, GLM-4V) divides by the size of what all heads write together, so that what one
head writes is not its own alone. Here the scale s is taken as each run has it: then the heads' parts add up exactly.

Tensors are followed by where they lie in memory: a norm is the module that was given the stream and whose output went
into the projections. What cannot be followed so is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..replay import UnfitError
from ..replay.check import ROUNDING

if TYPE_CHECKING:
    from ..adapters import Layer

PROJECTIONS = ("q_proj", "k_proj", "v_proj")


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

    @property
    def gain(self) -> Float[Tensor, " d_model"] | None:
        """The gain of the norm behind attention; None for no such norm."""
        return None if self.after is None else _gain(self.after, self.layer.output_projection)

    def projections(self) -> list[tuple[Float[Tensor, "head d_out d_model"], Float[Tensor, "head d_out"] | None]]:
        """Weight and bias of q, k and v, head by head."""
        counts = (self.layer.n_heads, self.n_kv, self.n_kv)
        return [by_head(module, n) for module, n in zip((self.q, self.k, self.v), counts, strict=True)]

    def outputs(self) -> Float[Tensor, "head d_head d_model"]:
        """W_O head by head, times the gain of the norm behind it."""
        assert self.layer.output_projection is not None
        weight, _ = linear(self.layer.output_projection)
        gain = self.gain
        weight = weight if gain is None else weight * gain[:, None]
        found: Tensor = weight.T.unflatten(0, (self.layer.n_heads, -1))
        return found


@dataclass(eq=False)
class Seen:
    """What one layer did in one forward.

    Attributes:
        calls: (module, what it was given, what it returned) of every part, in order.
        hidden, out: what entered and left the layer.
    """

    hidden: Tensor
    out: Tensor = field(default_factory=lambda: torch.empty(0))
    calls: list[tuple[nn.Module, Tensor, Tensor]] = field(default_factory=list)

    def given(self, module: nn.Module | None) -> Tensor:
        """What a module was given."""
        return next(given for each, given, _ in self.calls if each is module)

    def returned(self, module: nn.Module | None) -> Tensor:
        """What it returned."""
        return next(returned for each, _, returned in self.calls if each is module)

    def mid(self, parts: Parts) -> Tensor:
        """The stream that the feed-forward part reads."""
        found = self.given(parts.mlp_norm or parts.layer.mlp)
        return found.reshape(self.hidden.shape)

    def z(self, parts: Parts) -> Float[Tensor, "batch position head d_head"]:
        """What the heads give, times the scale with which it is written."""
        z: Tensor = self.given(parts.layer.output_projection).unflatten(-1, (parts.layer.n_heads, -1))
        return z * written_scale(parts, self.returned(parts.layer.attention))[..., None]

    def mlp_written(self, parts: Parts) -> Float[Tensor, "batch position d_model"]:
        """What the feed-forward part writes."""
        written = self.returned(parts.mlp_after or parts.layer.mlp).reshape(self.hidden.shape)
        return written if parts.mlp_factor == 1 else written * parts.mlp_factor


def written_scale(parts: Parts, attended: Float[Tensor, "batch position d_model"]) -> Tensor:
    """The scale of a norm behind attention for each row, times the layer's own factor; [batch, position, 1] or [1]."""
    gain = parts.gain
    if parts.after is None or gain is None:
        return attended.new_full((1,), parts.factor)
    plain, normed = attended * gain, parts.after(attended)
    scale: Tensor = (plain * normed).sum(-1, keepdim=True) / plain.square().sum(-1, keepdim=True)
    if not _close(scale * plain, normed):
        raise UnfitError(f"{type(parts.after).__name__} behind attention does not only scale what it is given")
    return scale * parts.factor


# ---------------------------------------------------------------------- watching


@contextmanager
def watching(layers: list[Layer] | tuple[Layer, ...], done: Callable[[int, Seen], None]) -> Iterator[None]:
    """Inside, every layer that runs is watched; `done` is called at its end, after which nothing of it is kept.

    What the feed-forward part reads is made a tensor of its own, so that its gradient is its own.
    """
    with ExitStack() as stack:
        for index, layer in enumerate(layers):
            _watch(index, layer, done, stack)
        yield


def _watch(index: int, layer: Layer, done: Callable[[int, Seen], None], stack: ExitStack) -> None:
    under_way: list[Seen] = []

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        under_way.append(Seen(_first(args, kwargs)))

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given, returned = _first(args, kwargs), output[0] if isinstance(output, tuple) else output
        if under_way and isinstance(given, Tensor) and isinstance(returned, Tensor):
            under_way[-1].calls.append((module, given, returned))

    def own(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        first = _first(args, kwargs)
        if not (isinstance(first, Tensor) and first.requires_grad):
            return None
        alias = first.view_as(first)
        return ((alias, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": alias})

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen = under_way.pop()
        seen.out = output[0] if isinstance(output, tuple) else output
        done(index, seen)

    stack.callback(layer.module.register_forward_pre_hook(enter, with_kwargs=True).remove)
    if layer.mlp is not None:
        stack.callback(layer.mlp.register_forward_pre_hook(own, with_kwargs=True).remove)
    inner = [getattr(layer.attention, name, None) for name in PROJECTIONS]
    watched = [*layer.module.children(), *inner, layer.output_projection]
    for module in {id(each): each for each in watched if each is not None}.values():
        stack.callback(module.register_forward_hook(note, with_kwargs=True).remove)
    stack.callback(layer.module.register_forward_hook(leave).remove)


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if args else kwargs.get("hidden_states")


# ---------------------------------------------------------------------- taking apart


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
    found = [getattr(layer.attention, each, None) for each in PROJECTIONS]
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
    if parallel:
        factor = mlp_factor = 1.0
        if not _close(seen.out, seen.hidden + attended + fed):
            raise UnfitError(f"{name} does not only add attention and feed-forward part to the residual stream")
    else:
        factor = _factor(mid - seen.hidden, attended, mid, name)
        mlp_factor = _factor(seen.out - between, fed, seen.out, name)
    return Parts(layer, q, k, v, norm, mlp_norm, after, mlp_after, factor, mlp_factor, parallel)


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


def _factor(change: Tensor, written: Tensor, stream: Tensor, name: str) -> float:
    """By what an output is multiplied when it is added to the stream."""
    factor = float((change * written).double().sum() / written.double().square().sum().clamp_min(1e-30))
    factor = 1.0 if abs(factor - 1) < 1e-2 else factor
    off = (change - factor * written).abs().max().double()
    if not off <= _tolerance(stream) * stream.abs().max().double():
        raise UnfitError(f"{name} does not only add attention and feed-forward part to the residual stream")
    return factor


def _same(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.numel() == other.numel()


def _tolerance(like: Tensor) -> float:
    return ROUNDING.get(like.dtype, 2e-4)


def _close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= _tolerance(other) * other.abs().max())


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
