"""Head ablation: take a head's contribution away and see what the model can no longer do."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..core.kernels import uniform
from ..core.rows import Rows
from ..core.taps import Tap, TapContext, TapFunction
from ..errors import InterventionError, unknown
from ..hooks.points import ModelShape
from ..hooks.results import Run
from ..prompts.prompt import Prompt
from ..prompts.rows import RowsLike, bind_rows
from .base import (
    Heads,
    HeadsLike,
    Intervention,
    checked_heads,
    checked_part,
    control_heads,
    heads_by_layer,
    plain_rows,
    shown,
    shown_heads,
    shown_part,
)
from .means import HeadMeans
from .patch import all_heads, replace_rows, stored

MODES = {
    "zero": "z is set to 0, which equals deleting the head's slice of W_O",
    "mean": "z is set to its mean over a data set at tokens of the same role; needs reference=head_means(...)",
    "resample": "z is set to its value on another prompt of the same layout; needs reference=lens.run(..., read=['z'])",
    "uniform": "the head attends evenly to every key that the row can see",
    "uniform_noncausal": "evenly to every key, future ones included: what the released code of Bi et al. (CVPR 2025) "
    "does; not causal, for comparison only",
}
"""What happens to a head, by mode."""


@dataclass(frozen=True)
class AblateHeads(Intervention):
    """Ablate attention heads.

    All rows, the rows after the image and the last row are three different experiments: name the scope in every result.

    Args:
        heads: a HeadSet, or (layer, head) pairs.
        mode: "zero", "mean", "resample", "uniform" or "uniform_noncausal"; see `MODES`. The first three edit z, where a
            head's output is its own; the output of the output projection is mixed already.
        rows: which query rows: "all", "after_image" (generated tokens included), "last" (the last prompt token), any
            other mask name, positions, or Bool[batch, position].
        reference: what "mean" and "resample" replace z by.
        part: by default what a HeadSet says, else "decoder"; or "vision": heads of the vision tower, whose row scopes
            are "all", "image" (patches), "class" and "register"; modes "zero" and "uniform".

    Raises:
        InterventionError: no heads, an unknown mode, or no reference of the right kind.
    """

    heads: Heads
    mode: str
    rows: RowsLike
    reference: HeadMeans | Run | None
    part: str

    def __init__(
        self,
        heads: HeadsLike,
        mode: str = "zero",
        rows: RowsLike = "all",
        reference: HeadMeans | Run | None = None,
        part: str | None = None,
    ) -> None:
        self._set(part=checked_part(part, heads), mode=mode, rows=plain_rows(rows), reference=reference)
        self._set(heads=checked_heads(heads, "AblateHeads", self.part))
        if self.in_tower and mode not in ("zero", "uniform"):
            raise InterventionError(
                f"heads of the vision tower are ablated by zero or uniform, given {mode!r}\n"
                '  put in what they do on another picture with PatchHeads(..., part="vision")'
            )
        if mode not in MODES:
            raise InterventionError(unknown("ablation mode", mode, MODES))
        wanted = {"mean": HeadMeans, "resample": Run}.get(mode, type(None))
        if not isinstance(reference, wanted):
            raise InterventionError(f"mode {mode!r}: {MODES[mode]}\n  given reference {type(reference).__name__}")

    def control_of(self, seed: int = 0) -> AblateHeads:
        """Its control: the same ablation of random heads, as many in each layer.

        Raises:
            InterventionError: the heads are whole layers, or no HeadSet.
        """
        return AblateHeads(
            control_heads(self.heads, seed, "AblateHeads"), self.mode, self.rows, self.reference, self.part
        )

    def taps(self, prompt: Prompt, shape: ModelShape) -> list[Tap]:
        """One edit in each layer that has a chosen head."""
        rows = bind_rows(self.rows, prompt)
        if self.mode == "resample":
            rows = rows.prompt_only()
        site = "pattern" if self.mode.startswith("uniform") else "z"
        return [
            Tap(site, layer, rows, self._edit(layer, prompt, rows, shape), chosen, edits=True)
            for layer, chosen in heads_by_layer(self.heads, shape).items()
        ]

    def _edit(self, layer: int, prompt: Prompt, rows: Rows, shape: ModelShape) -> TapFunction:
        if self.mode == "zero":
            return lambda z, context: z.zero_()
        if self.mode == "mean":
            assert isinstance(self.reference, HeadMeans)
            return self.reference.edit(layer, prompt, shape)
        if self.mode == "resample":
            assert isinstance(self.reference, Run)
            return replace_rows(all_heads(stored(self.reference, "z", layer, prompt, rows), shape, layer))
        if self.mode == "uniform":
            return _evenly()
        return _noncausal(bind_rows("all", prompt))

    def __repr__(self) -> str:
        return f"AblateHeads({shown_heads(self.heads)}, mode={self.mode!r}, rows={shown(self.rows)}{shown_part(self)})"


def _evenly() -> TapFunction:
    def edit(pattern: Tensor, context: TapContext) -> Tensor:
        assert context.visible is not None
        return uniform(context.visible())

    return edit


def _noncausal(everything: Rows) -> TapFunction:
    def edit(pattern: Tensor, context: TapContext) -> Tensor:
        keys = context.keys(everything, pattern.shape[-1])[:, None, None]
        return uniform(keys.expand(pattern.shape)).to(pattern.dtype)

    return edit
