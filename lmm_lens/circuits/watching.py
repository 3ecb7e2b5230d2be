"""Watch decoder layers run: what each of their parts was given, and what it returned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
    from .parts import Parts

PROJECTIONS = ("q_proj", "k_proj", "v_proj")


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
        z: Tensor = in_one_row(self.given(parts.layer.output_projection)).unflatten(-1, (parts.layer.n_heads, -1))
        return z * written_scale(parts, self.returned(parts.layer.attention))[..., None]

    def mlp_written(self, parts: Parts) -> Float[Tensor, "batch position d_model"]:
        """What the feed-forward part writes."""
        written = self.returned(parts.mlp_after or parts.layer.mlp).reshape(self.hidden.shape)
        written = written if parts.mlp_factor == 1 else written * parts.mlp_factor
        return written if parts.mlp_scale is None else written * parts.mlp_scale


def written_scale(parts: Parts, attended: Float[Tensor, "batch position d_model"]) -> Tensor:
    """The scale of a norm behind attention for each row, times the layer's own factor; [batch, position, 1] or [1]."""
    gain = parts.gain
    if parts.after is None or gain is None:
        return attended.new_full((1,), parts.factor)
    plain, normed = attended * gain, parts.after(attended)
    scale: Tensor = (plain * normed).sum(-1, keepdim=True) / plain.square().sum(-1, keepdim=True)
    if not close(scale * plain, normed):
        raise UnfitError(f"{type(parts.after).__name__} behind attention does not only scale what it is given")
    return scale * parts.factor


@contextmanager
def watching(layers: Sequence[Layer], done: Callable[[int, Seen], None]) -> Iterator[None]:
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
        under_way.append(Seen(in_one_row(_first(args, kwargs))))

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
        seen.out = in_one_row(output[0] if isinstance(output, tuple) else output)
        done(index, seen)

    stack.callback(layer.module.register_forward_pre_hook(enter, with_kwargs=True).remove)
    if layer.mlp is not None:
        stack.callback(layer.mlp.register_forward_pre_hook(own, with_kwargs=True).remove)
    inner = projections_of(layer)
    watched = [*layer.module.children(), *inner, layer.output_projection]
    for module in {id(each): each for each in watched if each is not None}.values():
        stack.callback(module.register_forward_hook(note, with_kwargs=True).remove)
    stack.callback(layer.module.register_forward_hook(leave).remove)


def projections_of(layer: Layer) -> list[nn.Module | None]:
    """What gives q, k and v of a layer; None for what has no module of its own."""
    own: tuple[nn.Module, ...] = getattr(layer, "projections", ())
    return [*own] or [getattr(layer.attention, name, None) for name in PROJECTIONS]


def in_one_row(x: Tensor) -> Tensor:
    """A packed sequence, [token, width], as one row."""
    return x if x.ndim == 3 else x[None]


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if args else kwargs.get("hidden_states")


def tolerance(like: Tensor) -> float:
    """How far two orders of summation may lie apart, as a share of the largest number."""
    return ROUNDING.get(like.dtype, 2e-4)


def close(one: Tensor, other: Tensor) -> bool:
    """Whether two activations agree up to rounding."""
    return bool((one - other).abs().max() <= tolerance(other) * other.abs().max())
