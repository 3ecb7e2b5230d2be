"""Each prompt measured twice, with a head and without: how large is the mean difference, and could it be chance?

The interval resamples prompts (percentile bootstrap, Efron 1979). The test flips signs: were the head of no effect,
each prompt's difference could as well have come out with the other sign, so the mean is compared with those of all
2^n choices of signs (Fisher 1935), or of as many random ones as asked for. Then p is `(1 + count) / (1 + draws)`, never
0, because what was observed is one of the choices (Phipson & Smyth 2010, arXiv:1603.05766).

NaN: a prompt without a number for some unit is no part of that unit's statistic, and `n` says how many are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import ScoreError
from .checks import check_alternative, check_count, check_level, per_prompt
from .resampling import interval_where_defined

BLOCK = 2**21
"""Numbers of a matrix of signs or of sums that is held at once; 16 MiB."""
ROUNDING = 1e-12
"""Sums that lie closer than this share of sum |difference| are equal: they add the same numbers in another order."""


@dataclass(frozen=True, eq=False)
class Interval:
    """A mean with its bootstrap interval.

    Attributes:
        mean: Float[*unit], fp64; NaN where no prompt has a number.
        low, high: Float[*unit], fp64; NaN where fewer than two prompts have one, which say nothing of their spread.
        n: Int[*unit], how many prompts have a number.
        level: the nominal coverage.
    """

    mean: Float[Tensor, "*unit"]
    low: Float[Tensor, "*unit"]
    high: Float[Tensor, "*unit"]
    n: Int[Tensor, "*unit"]
    level: float

    def __repr__(self) -> str:
        kind = f"Interval ({self.level:.0%}, bootstrap over prompts)"
        if self.mean.ndim:
            return f"{kind} of {self.mean.numel()} means, shape {tuple(self.mean.shape)}"
        return f"{kind}: {self.mean:.4g} ({self.low:.4g} to {self.high:.4g}), {int(self.n)} prompts"


def paired_interval(a: Any, b: Any, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """Bootstrap interval of the mean of a - b, resampling prompts, so that what is hard for both cancels.

    Args:
        a, b: Float[prompt, *unit], the same prompts measured in two ways.
        level: the nominal coverage.
        resamples: how many.
        seed: of the resampling.

    Raises:
        ScoreError: two shapes, no prompts, infinite numbers, no such level.
    """
    a, b = per_prompt(a, "a"), per_prompt(b, "b")
    if a.shape != b.shape:
        raise ScoreError(
            f"a and b must be of the same prompts and units, given {tuple(a.shape)} and {tuple(b.shape)}\n"
            "  repeat what is measured once a prompt: clean[:, None].expand_as(ablated)"
        )
    return mean_interval(a - b, level, resamples, seed)


def mean_interval(samples: Any, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """Bootstrap interval of the mean over prompts of Float[prompt, *unit]; see `paired_interval`."""
    check_level(level)
    check_count(resamples, "the number of resamples")
    samples = per_prompt(samples, "samples")
    n = (~samples.isnan()).sum(0)
    found = interval_where_defined(samples.reshape(len(samples), -1), level, resamples, seed)
    low, high = (bound.double().reshape(n.shape).masked_fill(n < 2, torch.nan) for bound in found)
    return Interval(samples.nanmean(0), low, high, n, level)


@dataclass(frozen=True, eq=False)
class SignFlip:
    """A sign flip test of mean differences against 0.

    Attributes:
        mean: Float[*unit], fp64, the mean difference.
        p: Float[*unit], fp64, in (0, 1]; NaN where no prompt has a number.
        n: Int[*unit], how many prompts have a number.
        n_permutations: choices of signs that were looked at.
        exact: whether these were all there are.
        alternative: the direction.
    """

    mean: Float[Tensor, "*unit"]
    p: Float[Tensor, "*unit"]
    n: Int[Tensor, "*unit"]
    n_permutations: int
    exact: bool
    alternative: str

    def __repr__(self) -> str:
        how = "all" if self.exact else "random"
        kind = f"SignFlip ({self.alternative}, {self.n_permutations} {how} choices of signs)"
        if self.mean.ndim:
            return f"{kind} of {self.mean.numel()} means, smallest p {self.p.nan_to_num(nan=1.0).min():.3g}"
        return f"{kind}: mean {self.mean:.4g}, p {self.p:.3g}, {int(self.n)} prompts"


def sign_flip_test(
    differences: Any, n_permutations: int = 10_000, seed: int = 0, alternative: str = "two-sided"
) -> SignFlip:
    """Could the mean difference be 0? Flips the signs of whole prompts, the same ones for all units.

    Exact, up to ties by rounding, where the 2^n choices of signs are no more than `n_permutations`; else Monte Carlo.
    It assumes that under the null a prompt's difference is symmetric about 0. Memory does not grow with
    `n_permutations`.

    Args:
        differences: Float[prompt, *unit].
        n_permutations: the most choices of signs to look at. No p is below 1 / (1 + n_permutations): with m units
            take at least 100 m, or no correction for many tests can find anything.
        seed: of the random choices.
        alternative: "two-sided", "greater" (the mean is above 0) or "less".

    Raises:
        ScoreError: no prompts, infinite numbers, no such alternative.
    """
    check_alternative(alternative)
    check_count(n_permutations, "the number of permutations")
    differences = per_prompt(differences, "differences")
    n_prompts, shape = differences.shape[0], differences.shape[1:]
    flat = differences.reshape(n_prompts, -1)
    terms = flat.nan_to_num(nan=0.0)  # a 0 adds nothing under either sign
    if alternative == "less":
        terms = -terms
    exact = 2**n_prompts <= n_permutations
    observed = terms.sum(0)
    limit = (observed.abs() if alternative == "two-sided" else observed) - ROUNDING * terms.abs().sum(0)
    count = torch.zeros(terms.shape[1], dtype=torch.int64)
    total = 2**n_prompts if exact else n_permutations
    for signs in _signs(n_prompts, total, exact, seed, max(1, BLOCK // max(terms.shape))):
        sums = signs @ terms
        count += ((sums.abs() if alternative == "two-sided" else sums) >= limit).sum(0)
    p = count.double() / total if exact else (1 + count).double() / (1 + total)
    n = (~flat.isnan()).sum(0)
    return SignFlip(
        flat.nanmean(0).reshape(shape),
        p.masked_fill(n == 0, torch.nan).reshape(shape),
        n.reshape(shape),
        total,
        exact,
        alternative,
    )


def _signs(n_prompts: int, total: int, exact: bool, seed: int, block: int) -> Iterator[Float[Tensor, "draw prompt"]]:
    """All choices of signs, or random ones, a block at a time; the same ones whatever the block."""
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, total, block):
        n = min(block, total - start)
        if exact:
            bits = torch.arange(start, start + n)[:, None] >> torch.arange(n_prompts) & 1
        else:
            bits = torch.randint(2, (n, n_prompts), dtype=torch.int8, generator=generator)
        yield bits.double().mul_(2).sub_(1)
