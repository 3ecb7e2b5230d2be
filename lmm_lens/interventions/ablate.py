"""Head ablation: take a head's output away and see what the model can no longer do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InterventionError, unknown
from ..heads import Head, HeadSet, check_head
from ..prompt import Prompt
from ..rows import RowsLike, bind_rows
from ..taps import ModelShape, Place, Tap
from .base import Intervention

MODES = ("zero",)


@dataclass(frozen=True, init=False, eq=False)
class AblateHeads(Intervention):
    """Ablate attention heads at z, their output before the output projection.

    `zero` sets z to 0, which equals deleting the head's slice of W_O. All rows, the rows after the image, and the last row
    are three different experiments, so name the scope in every result.

    Args:
        heads: a HeadSet, or (layer, head) pairs.
        mode: how; "zero".
        rows: which query rows: "all", "after_image" (generated tokens included), "last" (the last prompt token), any
            other mask name, positions, or Bool[batch, position].

    Raises:
        InterventionError: no heads, or an unknown mode.
    """

    heads: tuple[Head, ...]
    mode: str
    rows: RowsLike

    def __init__(self, heads: HeadSet | Iterable[Head], mode: str = "zero", rows: RowsLike = "all") -> None:
        if mode not in MODES:
            raise InterventionError(unknown("ablation mode", mode, MODES))
        chosen = tuple(heads)
        if not chosen:
            raise InterventionError("AblateHeads was given no heads: pass a HeadSet or (layer, head) pairs")
        object.__setattr__(self, "heads", chosen)
        object.__setattr__(self, "mode", mode)
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "_made_for", (heads.n_layers, heads.n_heads) if isinstance(heads, HeadSet) else None)

    def taps(self, prompt: Prompt, shape: ModelShape) -> list[Tap]:
        """One edit of z in each layer that has a chosen head."""
        made_for: tuple[int, int] | None = self._made_for  # type: ignore[attr-defined]
        if made_for is not None and made_for != (shape.n_layers, max(shape.n_heads)):
            raise InterventionError(
                f"the head set was made for a model of {made_for[0]} layers x {made_for[1]} heads, "
                f"this one has {shape.n_layers} x {max(shape.n_heads)}"
            )
        by_layer: dict[int, list[int]] = {}
        for layer, head in sorted(set(self.heads)):
            n_heads = shape.n_heads[layer] if 0 <= layer < shape.n_layers else 0
            check_head(layer, head, shape.n_layers, n_heads)
            by_layer.setdefault(layer, []).append(head)
        rows = bind_rows(self.rows, prompt)
        return [Tap("z", layer, rows, _zero, tuple(heads), edits=True) for layer, heads in by_layer.items()]

    def __repr__(self) -> str:
        shown = " ".join(f"L{layer}H{head}" for layer, head in self.heads[:6])
        more = f" and {len(self.heads) - 6} more" if len(self.heads) > 6 else ""
        rows = self.rows if isinstance(self.rows, str) else "given"
        return f"AblateHeads({shown}{more}, mode={self.mode!r}, rows={rows!r})"


def _zero(z: Tensor, place: Place) -> Tensor:
    return torch.zeros_like(z)
