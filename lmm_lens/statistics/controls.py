"""Heads ablated together, against random sets of heads ablated together on the same prompts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ..errors import ScoreError
from .checks import per_prompt
from .paired import ROUNDING, Interval, mean_interval, paired_interval


@dataclass(frozen=True, eq=False)
class ControlTest:
    """A set of heads against its random controls.

    Attributes:
        effect: of the set, with its interval over prompts.
        difference: the set's effect minus the mean of the controls', paired by prompt, with its interval.
        null: Float[control], fp64, the mean effect of each control.
        p: `(1 + controls with at least the set's effect) / (1 + controls)`, in (0, 1].
        z: how many standard deviations of the controls the set lies above their mean; NaN if they are all alike.
        n_prompts: on how many prompts everything has an effect; only they count.
    """

    effect: Interval
    difference: Interval
    null: Float[Tensor, " control"] = field(repr=False)
    p: float
    z: float
    n_prompts: int


def control_test(effects: Any, controls: Any, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> ControlTest:
    """Compare a set of heads with random sets that were ablated on the same prompts.

    The interval answers for other prompts, p for other random sets: with n controls it is never below 1 / (1 + n).

    Args:
        effects: Float[prompt], of the set.
        controls: Float[prompt, control], of each random set.
        level, resamples, seed: of the intervals.

    Raises:
        ScoreError: other shapes, or no prompt on which everything has an effect.
    """
    effects, controls = per_prompt(effects, "effects"), per_prompt(controls, "the controls' effects")
    if effects.ndim != 1 or controls.ndim != 2 or len(effects) != len(controls):
        raise ScoreError(
            f"expected effects [prompt] and controls [prompt, control] of the same prompts, "
            f"given {tuple(effects.shape)} and {tuple(controls.shape)}"
        )
    defined = ~(effects.isnan() | controls.isnan().any(1))
    effects, controls = effects[defined], controls[defined]
    if not len(effects):
        raise ScoreError("there is no prompt on which the set and all its controls have an effect")
    null, observed = controls.mean(0), float(effects.mean())
    rounding = ROUNDING * float(effects.abs().mean())
    count = int((null >= observed - rounding).sum())
    spread = float(null.std(correction=1)) if len(null) > 1 else 0.0
    return ControlTest(
        mean_interval(effects, level, resamples, seed),
        paired_interval(effects, controls.mean(1), level, resamples, seed),
        null,
        (1 + count) / (1 + len(null)),
        (observed - float(null.mean())) / spread if spread > rounding else math.nan,
        len(effects),
    )
