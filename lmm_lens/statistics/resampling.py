"""The percentile bootstrap (Efron 1979): the one place of this library where samples are drawn again.

Drawing n units with replacement is a multinomial draw of how often each counts, so every resampled sum is one row of a
matrix product, and any score that is a function of sums can be resampled exactly.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .checks import check_level

BLOCK = 2**24
"""Draws that are held at once, 128 MiB; a sweep or a benchmark of usual size is one block."""


def resampled_sums(
    samples: Float[Tensor, " unit *value"], resamples: int, generator: torch.Generator
) -> Float[Tensor, " resample *value"]:
    """Sums over n units drawn with replacement from these n, fp64; the same draws whatever the number of values."""
    n = samples.shape[0]
    flat = samples.double().cpu().reshape(n, -1)
    sums = flat.new_empty(resamples, flat.shape[1])
    step = max(1, BLOCK // n)
    for start in range(0, resamples, step):
        draws = torch.randint(n, (min(step, resamples - start), n), generator=generator)
        counts = torch.zeros(draws.shape, dtype=torch.float64).scatter_add_(1, draws, torch.ones_like(draws).double())
        sums[start : start + len(draws)] = counts @ flat
    return sums.reshape(resamples, *samples.shape[1:])


def percentiles(
    values: Float[Tensor, " resample *value"], level: float
) -> tuple[Float[Tensor, "*value"], Float[Tensor, "*value"]]:
    """The middle share of resampled values, low and high, among those that are not NaN; NaN where all are.

    Raises:
        ScoreError: no such level.
    """
    check_level(level)
    tails = torch.tensor([(1 - level) / 2, 1 - (1 - level) / 2], dtype=values.dtype)
    low, high = torch.nanquantile(values, tails, dim=0)
    return low, high


def bootstrap_interval(
    samples: Float[Tensor, " prompt *value"], level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[Float[Tensor, "*value"], Float[Tensor, "*value"]]:
    """Percentile bootstrap interval of the mean over prompts, low and high, fp32; NaN unless all prompts are finite.

    Raises:
        ScoreError: no such level.
    """
    sums = resampled_sums(samples, resamples, torch.Generator().manual_seed(seed))
    missing = ~samples.isfinite().all(0).cpu()
    low, high = (x.float().masked_fill(missing, torch.nan) for x in percentiles(sums / samples.shape[0], level))
    return low, high


def interval_where_defined(
    samples: Float[Tensor, "prompt value"], level: float, resamples: int, seed: int
) -> tuple[Float[Tensor, " value"], Float[Tensor, " value"]]:
    """As `bootstrap_interval`, of each value over the prompts in which it is a number; NaN where it is in none."""
    defined = ~samples.isnan()
    bounds = torch.full((2, samples.shape[1]), torch.nan)
    for prompts in defined.unique(dim=1).T:  # nearly always one or two kinds of columns
        columns = (defined == prompts[:, None]).all(0)
        if bool(prompts.any()):
            bounds[:, columns] = torch.stack(bootstrap_interval(samples[prompts][:, columns], level, resamples, seed))
    low, high = bounds
    return low, high
