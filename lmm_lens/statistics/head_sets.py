"""Do these heads matter more than others of the same layers? A permutation test of a head set.

The null draws as many heads in each layer as the set has there, uniformly, the set's own included: what
`HeadSet.random_like(disjoint=False)` draws. So depth, which explains much of what a head does, is held fixed. Where
there are no more such sets than draws were asked for, all of them are looked at.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import HookError, ScoreError, unknown
from ..hooks.heads import HeadSet
from .checks import check_alternative, check_count, numbers

STATISTICS = {"mean": lambda values: values.mean(1), "median": lambda values: values.quantile(0.5, 1)}
"""Of the effects in a set, [draw, head]; a mean can be one strong head's, a median cannot."""
ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class HeadSetTest:
    """A head set against random sets with the same layer spread.

    Attributes:
        heads: the set.
        statistic: of its effects.
        alternative: the direction.
        observed: the statistic of the set.
        p: in (0, 1].
        z: how many standard deviations of the null the set lies above its mean; NaN if all sets are alike.
        null: Float[draw], fp64, the statistic of each random set.
        n_sets: how many different sets with this layer spread there are.
        exact: whether `null` holds each of them once.
    """

    heads: HeadSet
    statistic: str
    alternative: str
    observed: float
    p: float
    z: float
    null: Float[Tensor, " draw"] = field(repr=False)
    n_sets: int
    exact: bool

    def __repr__(self) -> str:
        how = f"all {self.n_sets}" if self.exact else f"{len(self.null)} random ones of {_counted(self.n_sets)}"
        return (
            f"HeadSetTest: {self.statistic} effect {self.observed:.4g} of {len(self.heads)} heads, "
            f"{float(self.null.mean()):.4g} of random sets in the same layers ({how}); "
            f"z {self.z:+.2f}, p {self.p:.3g} ({self.alternative})"
        )


def head_set_test(
    effects: Any,
    heads: HeadSet,
    n_draws: int = 10_000,
    seed: int = 0,
    statistic: str = "mean",
    alternative: str = "greater",
) -> HeadSetTest:
    """Test a head set against random sets with the same layer spread.

    The set must have been chosen on other prompts than the effects come from, or by something else than the effects:
    the best heads of a sweep beat random ones in that same sweep by construction.

    Args:
        effects: Float[layer, head], one number a head; NaN where there is none, and no random set takes such a head.
        heads: the set in question.
        n_draws: how many random sets. Not more than that many different ones are all enumerated.
        seed: of the draws.
        statistic: "mean" or "median" of the effects in a set.
        alternative: "greater" (than random sets), "less", or "two-sided" (twice the smaller p).

    Raises:
        ScoreError: another model's effects, a head without effect, an empty set, or a layer whose heads are all in the
            set, where chance has nothing to choose.
        HookError: the set is of another model than the effects.
    """
    check_alternative(alternative)
    check_count(n_draws, "the number of draws")
    if statistic not in STATISTICS:
        raise ScoreError(unknown("statistic", statistic, STATISTICS))
    effects = numbers(effects, "effects")
    if tuple(effects.shape) != (heads.n_layers, heads.n_heads):
        raise HookError(
            f"the heads are of a model with {heads.n_layers} layers x {heads.n_heads} heads, "
            f"the effects are {tuple(effects.shape)}"
        )
    pools = _pools(effects, heads)
    n_sets = math.prod(math.comb(len(pool), n) for pool, n in pools)
    exact = n_sets <= n_draws
    members = _all_sets(pools) if exact else _random_sets(pools, n_draws, torch.Generator().manual_seed(seed))
    null = STATISTICS[statistic](members)
    mine = torch.stack([effects[head] for head in heads])
    observed = float(STATISTICS[statistic](mine[None]))
    above, below = (_tail(null, observed, float(mine.abs().mean()), exact, sign) for sign in (1, -1))
    p = {"greater": above, "less": below, "two-sided": min(1.0, 2 * min(above, below))}[alternative]
    spread = float(null.std(correction=0))
    z = (observed - float(null.mean())) / spread if spread > ROUNDING * float(mine.abs().mean()) else math.nan
    return HeadSetTest(heads, statistic, alternative, observed, p, z, null, n_sets, exact)


Pool = tuple[Tensor, int]
"""The effects of a layer's heads, and how many of them a set takes."""


def _pools(effects: Tensor, heads: HeadSet) -> list[Pool]:
    if not len(heads):
        raise ScoreError("the head set is empty: there is nothing to test")
    missing = [head for head in heads if bool(effects[head].isnan())]
    if missing:
        raise ScoreError(f"L{missing[0][0]}H{missing[0][1]} of the set has no effect: it is NaN\n  measure it first")
    rows = {layer: effects[layer][~effects[layer].isnan()] for layer in heads.by_layer()}
    pools = {layer: (rows[layer], len(taken)) for layer, taken in heads.by_layer().items()}
    full = [layer for layer, (pool, n) in pools.items() if n == len(pool)]
    if full:
        free = [math.comb(len(pool), n) for pool, n in pools.values() if n < len(pool)]
        raise ScoreError(
            f"all measured heads of layers {full} are in the set, so every random set has them too\n"
            + (
                f"  leave these layers out: without them there are {_counted(math.prod(free))} different sets"
                if free
                else "  there is only this one set with its layer spread: take fewer heads"
            )
        )
    return list(pools.values())


def _all_sets(pools: list[Pool]) -> Float[Tensor, "draw head"]:
    """The effects of every set."""
    sets = torch.zeros(1, 0, dtype=torch.float64)
    for pool, n in pools:
        here = torch.tensor(list(itertools.combinations(pool.tolist(), n)), dtype=torch.float64)
        sets = torch.cat([sets.repeat_interleave(len(here), 0), here.repeat(len(sets), 1)], 1)
    return sets


def _random_sets(pools: list[Pool], n_draws: int, generator: torch.Generator) -> Float[Tensor, "draw head"]:
    """The effects of random sets: the first of each layer's heads in a random order."""
    orders = [torch.rand(n_draws, len(pool), generator=generator).argsort(1)[:, :n] for pool, n in pools]
    return torch.cat([pool[order] for (pool, _), order in zip(pools, orders, strict=True)], 1)


def _tail(null: Tensor, observed: float, scale: float, exact: bool, sign: int) -> float:
    """The share of random sets at least as far out; where they are drawn, the observed set counts as one more."""
    count = int((sign * (null - observed) >= -ROUNDING * scale).sum())
    return count / len(null) if exact else (1 + count) / (1 + len(null))


def _counted(n: int) -> str:
    return str(n) if n < 10**6 else f"about 10^{math.log10(n):.0f}"
