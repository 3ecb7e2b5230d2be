"""Heads ablated by rank: the top k against random heads of the same layers, and late ones against earlier ones.

Heads are chosen on one half of the samples and ablated on the other. Every set is zeroed in all rows, so that questions
with a picture and without one are treated alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..data import DataSet
from ..effects import HeadEffects, head_effects
from ..hooks.heads import HeadSet
from ..runs import RayLike
from ..statistics import holm, mean_interval, paired_interval, sign_flip_test
from .depth import top_heads

if TYPE_CHECKING:
    from ..lens import Lens

OUTCOMES = ("accuracy", "log_prob")
"""In which an effect is told: the answer's first token is the most likely one; its natural log probability."""
ROWS = "all"


@dataclass(frozen=True)
class Arm:
    """A set of heads and its random controls, which have as many heads in each layer.

    Attributes:
        name: "top", "early" (the top heads of the first two thirds of the layers) or "late" (of the last third).
        k: how many heads.
        heads: them.
        controls: the draws.
        shared: how many heads a draw has in common with the set, mean, where a layer has too few others.
    """

    name: str
    k: int
    heads: HeadSet
    controls: tuple[HeadSet, ...]

    @property
    def shared(self) -> float:
        return sum(len(self.heads & each) for each in self.controls) / max(1, len(self.controls))

    @property
    def units(self) -> tuple[HeadSet, ...]:
        """What is ablated, the set first."""
        return (self.heads, *self.controls)


def steps(n_heads: int) -> tuple[int, ...]:
    """1, 2, 4, ... up to a quarter of all heads."""
    return tuple(2**i for i in range(n_heads.bit_length()) if 2**i <= max(1, n_heads // 4))


def arms(
    values: Float[Tensor, "layer head"], ks: Sequence[int] | None = None, n_controls: int = 5, seed: int = 0
) -> tuple[Arm, ...]:
    """The sets to ablate, by scores of heads.

    Args:
        values: the scores.
        ks: how many top heads; powers of two up to a quarter of them by default.
        n_controls: random draws a set.
        seed: of the first draw.
    """
    n_layers = len(values)
    known = int((~values.isnan()).sum())
    chosen = [("top", top_heads(values, k)) for k in (steps(known) if ks is None else ks)]
    first_late = -(-2 * n_layers // 3)
    early, late = values.clone(), values.clone()
    early[first_late:], late[:first_late] = torch.nan, torch.nan
    k = min(int((~part.isnan()).sum()) for part in (early, late)) // 2
    if k:
        chosen += [("early", top_heads(early, k)), ("late", top_heads(late, k))]
    return tuple(Arm(name, len(heads), heads, _drawn(heads, n_controls, seed)) for name, heads in chosen)


def _drawn(heads: HeadSet, n: int, seed: int) -> tuple[HeadSet, ...]:
    return tuple(heads.random_like(seed + draw, "most") for draw in range(n))


def ablate(
    lens: Lens,
    data: DataSet,
    chosen: Sequence[Arm],
    *,
    folder: Path | None = None,
    ray: RayLike = None,
    changed: str = "refuse",
    progress: bool = False,
) -> HeadEffects:
    """Ablate every set of every arm on every sample; arguments and errors as of `head_effects`."""
    units = [unit for arm in chosen for unit in arm.units]
    return head_effects(
        lens,
        data,
        "zero",
        ROWS,
        "log_prob",
        heads=units,
        folder=folder,
        ray=ray,
        changed=changed,
        progress=progress,
    )


def curve(effects: HeadEffects, chosen: Sequence[Arm], seed: int = 0) -> list[dict[str, Any]]:
    """What each set costs the answers, beside its controls.

    Returns:
        One row an outcome and arm: outcome, set, k, clean (the outcome without ablation), effect, low, high, control
        (mean over draws), control_low, control_high, difference, difference_low, difference_high, p (sign flip test of
        effect minus control over prompts), p_holm (over the arms of the outcome), shared, n, heads.
    """
    found = []
    for outcome in OUTCOMES:
        rows = list(_rows(effects.of(outcome), chosen, seed))
        corrected = holm([row["p"] for row in rows]).tolist()
        found += [{"outcome": outcome, **row, "p_holm": p} for row, p in zip(rows, corrected, strict=True)]
    return found


def of_arms(effects: HeadEffects, chosen: Sequence[Arm]) -> Iterator[tuple[Arm, Tensor, Tensor]]:
    """Each arm with its effect on each prompt, and its controls' mean."""
    at = 0
    for arm in chosen:
        mine = effects.per_prompt[:, at : at + len(arm.units)]
        yield arm, mine[:, 0], mine[:, 1:].mean(1)
        at += len(arm.units)


def _rows(effects: HeadEffects, chosen: Sequence[Arm], seed: int) -> Iterator[dict[str, Any]]:
    for arm, mine, controls in of_arms(effects, chosen):
        effect, control = mean_interval(mine, seed=seed), mean_interval(controls, seed=seed)
        gap = paired_interval(mine, controls, seed=seed)
        yield {
            "set": arm.name,
            "k": arm.k,
            "clean": float(effects.clean.mean()),
            **_three(effect, "effect"),
            **_three(control, "control"),
            **_three(gap, "difference"),
            "p": float(sign_flip_test(mine - controls, seed=seed).p),
            "shared": arm.shared,
            "n": effects.n_prompts,
            "heads": str(arm.heads),
        }


def _three(found: Any, name: str) -> dict[str, float]:
    bounds = ("low", "high") if name == "effect" else (f"{name}_low", f"{name}_high")
    return {name: float(found.mean), bounds[0]: float(found.low), bounds[1]: float(found.high)}
