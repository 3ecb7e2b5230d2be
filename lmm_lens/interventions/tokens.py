"""Token ablation: replace visual tokens before the first layer, as if the patch had shown nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.rows import Rows
from ..core.taps import Tap, TapContext
from ..errors import InterventionError, unknown
from ..hooks.points import ModelShape
from ..prompts.prompt import Prompt
from ..prompts.rows import RowsLike, bind_rows
from .base import Intervention, plain_rows, shown

MODES = ("mean", "zero")


@dataclass(frozen=True)
class AblateTokens(Intervention):
    """Replace chosen tokens where they enter the decoder, at resid_pre of layer 0.

    Args:
        tokens: which tokens: a mask name, positions (`prompt.positions_in_box` gives an object's), or Bool[batch,
            position].
        mode: "mean", the mean over the row's visual tokens, or "zero".

    Raises:
        InterventionError: an unknown mode; visual tokens of a model that adds visual features again in later layers
            (deepstack), where replacing them once would only half remove them; "mean" without visual tokens.
    """

    tokens: RowsLike = "image"
    mode: str = "mean"

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", plain_rows(self.tokens))
        if self.mode not in MODES:
            raise InterventionError(unknown("mode of AblateTokens", self.mode, MODES))

    def taps(self, prompt: Prompt, shape: ModelShape) -> list[Tap]:
        """One edit at layer 0."""
        chosen = bind_rows(self.tokens, prompt).prompt_only()
        visual = prompt.mask("visual")
        if shape.reinjects and bool((chosen.prompt & visual).any()):
            raise InterventionError(
                "this model adds visual features again after layer 0 (deepstack), so its visual tokens cannot be "
                "ablated where they enter\n  knock out attention to them instead: Knockout(source=..., target=...)"
            )
        without = (chosen.prompt.any(1) & ~visual.any(1)).nonzero().flatten().tolist()
        if self.mode == "mean" and without:
            raise InterventionError(f"batch rows {without} have no visual tokens to take the mean of; use mode='zero'")
        if not chosen.reaches():
            return [Tap("resid_pre", 0, chosen, lambda x, context: x, edits=True)]
        touched = Rows(chosen.label, chosen.prompt | (visual & chosen.prompt.any(1)[:, None]))

        is_zero = self.mode == "zero"

        def put(x: Tensor, context: TapContext) -> Tensor:
            target = chosen.prompt.to(x.device).gather(1, context.positions) & context.valid
            context.note(target)
            if is_zero:
                return x.masked_fill(target[..., None], 0)
            seen = (visual.to(x.device).gather(1, context.positions) & context.valid)[..., None].to(x.dtype)
            mean = (x * seen).sum(1, keepdim=True) / seen.sum(1, keepdim=True).clamp_min(1)
            return torch.where(target[..., None], mean, x)

        return [Tap("resid_pre", 0, touched, put, edits=True, chooses=True)]

    def __repr__(self) -> str:
        return f"AblateTokens({shown(self.tokens)}, mode={self.mode!r})"
