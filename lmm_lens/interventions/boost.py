"""Attention boost of PAI (Liu et al., arXiv:2407.21771): make the rows that generate look harder at the image."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from ..core.kernels import boost
from ..core.taps import Tap, TapContext
from ..errors import InterventionError
from ..hooks.points import ModelShape
from ..prompts.prompt import Prompt
from ..prompts.rows import RowsLike, bind_rows
from .base import Intervention, layers_with_heads, plain_rows, shown, whole_numbers


@dataclass(frozen=True)
class BoostAttention(Intervention):
    """Raise the scores before the softmax on some keys: e += alpha |e|.

    The classifier-free guidance that the paper adds to it is a decoding method and not part of this.

    Args:
        alpha: how much; the paper's is 0.2.
        layers: which layers; None for layer 2 to the last.
        keys: the keys to raise: a mask name, positions, or Bool[batch, position].
        rows: "generating": the last prompt token and every generated one, as in the paper.

    Raises:
        InterventionError: alpha is not positive, or there are no such keys.
    """

    alpha: float = 0.2
    layers: Iterable[int] | None = None
    keys: RowsLike = "visual"
    rows: RowsLike = "generating"

    def __post_init__(self) -> None:
        for name in ("keys", "rows"):
            object.__setattr__(self, name, plain_rows(getattr(self, name)))
        if not 0 < self.alpha < float("inf"):
            raise InterventionError(f"alpha must be positive, given {self.alpha}")
        if self.layers is not None:
            object.__setattr__(self, "layers", whole_numbers(self.layers, "BoostAttention", "layers"))

    def taps(self, prompt: Prompt, shape: ModelShape) -> list[Tap]:
        """One edit of the pattern a layer."""
        keys, rows = bind_rows(self.keys, prompt), bind_rows(self.rows, prompt)
        if not keys.reaches():
            raise InterventionError(f"BoostAttention's keys {shown(self.keys)} select no token of this prompt")

        alpha = self.alpha

        def raise_scores(pattern: Tensor, context: TapContext) -> Tensor:
            assert context.scores is not None
            return boost(pattern, context.scores(), context.keys(keys, pattern.shape[-1]), alpha)

        layers = self.layers if self.layers is not None else [x for x in shape.self_attention if x >= 2]
        return [
            Tap("pattern", layer, rows, raise_scores, edits=True, needs_scores=True)
            for layer in layers_with_heads(layers, shape)
        ]

    def __repr__(self) -> str:
        return f"BoostAttention(alpha={self.alpha:g}, keys={shown(self.keys)}, rows={shown(self.rows)})"
