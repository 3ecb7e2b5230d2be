"""Scale attention: multiply what rows give to some keys, so that a head looks harder, or less hard, at them.

The plainest edit of where a head looks: `a_j -> factor a_j` for the source keys. With the row brought back to its sum
it is the softmax of scores raised by ln(factor); without, the head also gives more, or less, in total.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from ..core.kernels import changed_by, scale
from ..core.taps import Tap, TapContext
from ..errors import InterventionError
from ..hooks.points import ModelShape
from ..prompts.prompt import Prompt
from ..prompts.rows import RowsLike, bind_rows
from .base import Heads, HeadsLike, Intervention, control_heads, plain_rows, shown
from .knockout import PICTURES
from .where import at_heads, checked_where, shown_where


@dataclass(frozen=True)
class ScaleAttention(Intervention):
    """Multiply the attention of the target rows on the source keys.

    A row that sees no source key, or nothing else, has nothing to renormalise and stays as it is.

    In layers of cross-attention every key is a picture, so that renormalised rows stay as they are: these layers are
    left out. With `renormalise=False` and the source "image" (or "visual") what their heads give is multiplied.

    Args:
        source: keys: a mask name ("image", "question", ...), positions, or Bool[batch, position].
        target: rows, named alike; generated tokens included where the scope has them.
        factor: 0 or more; below 1 a row looks less at the source, 0 is a `Knockout`.
        layers: which layers, all of their heads; None for all.
        heads: in place of layers, a HeadSet or (layer, head) pairs.
        renormalise: whether each row is brought back to the sum that it had.

    Raises:
        InterventionError: a factor that is negative, not finite, or 1; layers and heads both; no source in the prompt.
    """

    source: RowsLike
    target: RowsLike
    factor: float
    layers: tuple[int, ...] | None
    heads: Heads | None
    renormalise: bool

    why_nothing = "the target rows were not reached, see no key of the source, or nothing else"

    def __init__(
        self,
        source: RowsLike = "image",
        target: RowsLike = "after_image",
        factor: float = 1.3,
        layers: Iterable[int] | None = None,
        heads: HeadsLike | None = None,
        renormalise: bool = True,
    ) -> None:
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not isfinite(factor) or factor < 0:
            raise InterventionError(f"ScaleAttention: factor is a number, 0 or more, given {factor!r}")
        if factor == 1:
            raise InterventionError("ScaleAttention: a factor of 1 changes nothing")
        own_layers, own_heads = checked_where(layers, heads, "ScaleAttention")
        self._set(
            source=plain_rows(source),
            target=plain_rows(target),
            factor=float(factor),
            layers=own_layers,
            heads=own_heads,
            renormalise=bool(renormalise),
        )

    def control_of(self, seed: int = 0) -> ScaleAttention:
        """Its control: the same of random heads, as many in each layer.

        Raises:
            InterventionError: no HeadSet was given, or its heads are whole layers.
        """
        if self.heads is None:
            raise InterventionError("the control of ScaleAttention is of random heads: give heads=, a HeadSet")
        heads = control_heads(self.heads, seed, "ScaleAttention")
        return ScaleAttention(self.source, self.target, self.factor, None, heads, self.renormalise)

    def taps(self, prompt: Prompt, shape: ModelShape) -> list[Tap]:
        """One edit of the pattern a layer."""
        source, rows = bind_rows(self.source, prompt), bind_rows(self.target, prompt)
        if not source.reaches():
            raise InterventionError(f"ScaleAttention's source {shown(self.source)} selects no token of this prompt")
        whole = not self.renormalise and isinstance(self.source, str) and self.source in PICTURES
        crossing = shape.crossing if whole else []
        factor, renormalise = self.factor, self.renormalise

        def growth(pattern: Tensor, context: TapContext) -> Tensor:
            if context.layer in crossing:
                context.note(context.only_valid(pattern.sum(-1)))
                return torch.full_like(pattern, factor - 1)
            halves = context.halves(source, context.n_keys, pattern.dtype)
            grown, sums = scale(pattern, halves, factor, renormalise)
            context.note_as(changed_by, context.valid_rows(sums))
            return grown

        where = at_heads(self.layers, self.heads, shape, whole)
        return [Tap.of_growth(layer, rows, growth, own, renormalise) for layer, own in where.items()]

    def __repr__(self) -> str:
        where = shown_where(self.layers, self.heads)
        sums = "" if self.renormalise else ", renormalise=False"
        return f"ScaleAttention({shown(self.source)} x {self.factor:g} in rows {shown(self.target)}{where}{sums})"
