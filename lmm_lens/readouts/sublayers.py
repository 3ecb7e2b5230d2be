"""What a decoder layer adds to the residual stream, as attention and feed-forward part, whatever stands behind them.

    resid_post = resid_pre + A(attn_out) + M(mlp_out)

A and M are the identity in most families; a number (Granite), or a normalisation behind the part (Gemma 2 and 3), with
its scale frozen. Which it is, is found by trying what the layer has, and kept if it adds up, as parallel blocks do too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..adapters import Layer
from ..errors import ModelError
from .frozen import FrozenNorm, close

Rows = Float[Tensor, "batch d_model"]


@dataclass(frozen=True, eq=False)
class Behind:
    """What a part goes through before it is added.

    Attributes:
        factor: a number.
        norm: a normalisation, frozen; None for none.
    """

    factor: float = 1.0
    norm: FrozenNorm | None = None

    def __call__(self, x: Rows) -> Rows:
        """What is added of a part, without a bias."""
        return self.factor * (x if self.norm is None else self.norm(x))

    def offset(self, like: Rows) -> Rows:
        """What is added whatever the part is: a bias of the normalisation."""
        nothing = torch.zeros_like(like)
        return nothing if self.norm is None else nothing + self.factor * self.norm.bias.to(like.device)

    def added(self, part: Rows) -> Rows:
        """All that is added of a part, in fp64."""
        return self(part.double()) + self.offset(part.double())

    def pulled(self, direction: Rows) -> Rows:
        """A direction of the stream as one of the part."""
        return self.factor * (direction if self.norm is None else self.norm.pulled(direction))


@dataclass(frozen=True, eq=False)
class Sublayers:
    """A layer taken apart at one row of each batch row, fp64.

    Attributes:
        attention, mlp: what stands behind each; None where the layer has no such part that is known.
        other: Float[batch, d_model], what else it adds: all of it where it has no attention, 0 otherwise.
    """

    attention: Behind | None
    mlp: Behind | None
    other: Rows


def taken_apart(
    layer: Layer, number: int, pre: Rows, post: Rows, attn: Rows | None, mlp: Rows | None, dtype: torch.dtype
) -> Sublayers:
    """How a layer's parts add up to what it adds.

    Args:
        layer: its modules.
        number: which.
        pre, post: the stream before and behind it, fp64.
        attn, mlp: the parts, in the model's precision; None where there is none.
        dtype: the model's.

    Raises:
        ModelError: it adds something else than its two parts.
    """
    change = post - pre
    if attn is None or mlp is None:  # linear attention and the like: what is not known of is one
        known = mlp if attn is None else attn
        behind = Behind() if known is None else next(iter(_candidates(layer, known)))
        other = change if known is None else change - behind.added(known)
        return Sublayers(None if attn is None else behind, None if mlp is None else behind, other)
    for a, m in product(_candidates(layer, attn), _candidates(layer, mlp)):
        one, two = a.added(attn), m.added(mlp)
        if close(pre + one + two, post, pre.abs() + post.abs() + one.abs() + two.abs(), dtype):
            return Sublayers(a, m, torch.zeros_like(pre))
    kind = type(layer.module).__name__
    raise ModelError(
        f"layer {number} ({kind}) adds something else to the residual stream than its attention and its feed-forward "
        "part, so what they contribute is not known\n  by='layer' adds up on every model"
    )


def _candidates(layer: Layer, part: Rows) -> Iterator[Behind]:
    """What may stand behind a part, the likeliest first."""
    yield Behind()
    for factor in _factors(layer.module):
        yield Behind(factor)
    for name, module in layer.module.named_children():
        if "norm" in name.lower():
            try:
                yield Behind(norm=FrozenNorm.of(module, part))
            except (ModelError, RuntimeError, TypeError):  # of another width, or of another kind
                continue


def _factors(module: nn.Module) -> Iterator[float]:
    for holder in (module, getattr(module, "config", None)):
        found = getattr(holder, "residual_multiplier", None)
        if isinstance(found, (int, float)) and found != 1:
            yield float(found)
