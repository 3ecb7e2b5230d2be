"""Layers of a tower that packs pictures, or makes q, k and v in one, run as if they did neither.

A packed tower runs on [token, width], which is one row of all pictures. Its norms and feed-forward parts take
[1, token, width] as well; its attention is given what it is used to. A projection that gives q, k and v at once is
computed as three, by the rows of its weight. Both are done to the modules' `forward`, in one thread, and undone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters import Layer
from ..replay import UnfitError
from .parts import linear
from .watching import PROJECTIONS, close

FUSED = "qkv"


@dataclass(frozen=True, eq=False)
class UnpackedLayer(Layer):
    """A layer whose q, k and v are modules of their own.

    Attributes:
        projections: these, which share or copy the weights of the model's.
        sources: the modules that they stand for: one for all, or one each.
        packed: whether it runs on [token, width].
    """

    projections: tuple[nn.Module, ...] = ()
    sources: tuple[nn.Module, ...] = ()
    packed: bool = False

    @classmethod
    def of(cls, layer: Layer, packed: bool) -> UnpackedLayer:
        """A layer of a model, taken apart.

        Raises:
            UnfitError: how it makes q, k and v is not known.
        """
        own: dict[str, Any] = {each.name: getattr(layer, each.name) for each in fields(Layer)}
        fused = getattr(layer.attention, FUSED, None)
        if isinstance(fused, nn.Module):
            return cls(**own, projections=_thirds(layer, fused), sources=(fused,), packed=packed)
        sources = [getattr(layer.attention, name, None) for name in PROJECTIONS]
        if not all(isinstance(each, nn.Module) for each in sources):
            raise UnfitError(f"the attention of {type(layer.module).__name__} does not project q, k and v one by one")
        found = tuple(each for each in sources if each is not None)
        return cls(**own, projections=tuple(_plain(*linear(each)) for each in found), sources=found, packed=packed)


def is_fused(layer: Layer) -> bool:
    """Whether a layer makes q, k and v in one."""
    return isinstance(getattr(layer.attention, FUSED, None), nn.Module)


def _thirds(layer: Layer, fused: nn.Module) -> tuple[nn.Module, ...]:
    """The three parts of a projection, each as wide as all heads."""
    weight, bias = linear(fused)
    width = layer.n_heads * layer.d_head
    if len(weight) != 3 * width:
        raise UnfitError(
            f"the attention of {type(layer.module).__name__} projects q, k and v in one, to {len(weight)} numbers and "
            f"not to three times {width}"
        )
    biases = [None] * 3 if bias is None else bias.split(width)
    return tuple(_plain(part, own) for part, own in zip(weight.split(width), biases, strict=True))


def _plain(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias, requires_grad=False)
    return made


@contextmanager
def unpacked(layers: Sequence[Layer]) -> Iterator[None]:
    """Inside, and in this thread alone, layers that are to be unpacked run so; others as they are."""
    with ExitStack() as undo:
        for layer in layers:
            if not isinstance(layer, UnpackedLayer):
                continue
            if layer.packed:
                assert layer.attention is not None
                _instead(layer.module, _as_batch, undo)
                _instead(layer.attention, _as_packed, undo)
            one = len(layer.sources) == 1
            for number, source in enumerate(layer.sources):
                parts = layer.projections if one else layer.projections[number : number + 1]
                _instead(source, _Projected(parts), undo)
        yield


class _Projected:
    """What a projection gives, made by its parts."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        self.parts = parts

    def __call__(self, own: Callable[..., Any], x: Tensor) -> Tensor:
        rows = x if x.ndim == 3 else x[None]
        found = torch.cat([part(rows) for part in self.parts], -1)
        return found if x.ndim == 3 else found[0]


def _as_batch(own: Callable[..., Any], x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """A layer: of a packed sequence, inside it is one row."""
    if x.ndim == 3:
        return own(x, *args, **kwargs)
    out = own(x[None], *args, **kwargs)
    return (out[0][0], *out[1:]) if isinstance(out, tuple) else out[0]


def _as_packed(own: Callable[..., Any], x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Attention: of one row that is a packed sequence, inside it is that."""
    if x.ndim == 2:
        return own(x, *args, **kwargs)
    out = own(x[0], *args, **kwargs)
    return (out[0][None], *out[1:]) if isinstance(out, tuple) else out[None]


def _instead(module: nn.Module, of: Callable[..., Any], undo: ExitStack) -> None:
    """Run something in the place of a module's forward, which it is given."""
    mine, own = threading.get_ident(), module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != mine:
            return own(*args, **kwargs)
        if not args:
            args, kwargs = (kwargs["hidden_states"],), {k: v for k, v in kwargs.items() if k != "hidden_states"}
        return of(own, *args, **kwargs)

    had = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    undo.callback(put_back, module, had)


def put_back(module: nn.Module, forward: Any) -> None:
    """Undo that a module's forward was replaced."""
    if forward is None:
        del module.__dict__["forward"]
    else:
        module.__dict__["forward"] = forward


def check_thirds(run: Callable[[int, Layer, Tensor], Tensor], layer: Layer, x: Tensor) -> None:
    """That the heads of a projection that gives q, k and v in one lie where they are looked for.

    Where every token has the same values, a head gives these whatever it attends to.

    Raises:
        UnfitError: they do not.
    """
    if not isinstance(layer, UnpackedLayer) or len(layer.sources) > 1 or layer.output_projection is None:
        return
    expected = torch.linspace(-1, 1, layer.n_heads * layer.d_head, device=x.device, dtype=x.dtype)
    seen: list[Tensor] = []
    values = layer.projections[2].register_forward_hook(lambda module, args, out: expected.expand_as(out))
    given = layer.output_projection.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        with torch.no_grad():
            run(0, layer, x)
    finally:
        values.remove()
        given.remove()
    if not close(seen[0], expected.expand_as(seen[0])):
        raise UnfitError(f"{type(layer.attention).__name__} projects q, k and v in one, in an order that is not known")
