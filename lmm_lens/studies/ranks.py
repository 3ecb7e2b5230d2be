"""Rank correlations of head maps, with their intervals and with the control that depth alone explains.

Two maps agree in part because heads of one layer are alike. The control shuffles the heads of each layer of one map:
what correlation is left is the layers' alone. `p` is the share of shuffles that agree at least as well, the map as
it is counted as one more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

Maps = Float[Tensor, "prompt layer head"]
N_DRAWS = 200


@dataclass(frozen=True)
class Agreement:
    """Spearman's correlation of two head maps.

    Attributes:
        value: of the means over prompts; NaN where a map does not vary.
        low, high: 95% interval, resampling prompts; NaN where there are fewer than two.
        control: mean correlation after the heads of each layer were shuffled.
        p: how often these agree at least as well.
        n_heads: how many heads have both numbers.
    """

    value: float
    low: float
    high: float
    control: float
    p: float
    n_heads: int


def spearman(a: Float[Tensor, "layer head"], b: Float[Tensor, "layer head"]) -> float:
    """Over the heads that have both numbers; ties share their mean rank; NaN where either does not vary."""
    both = ~(a.isnan() | b.isnan())
    return float(correlations_of_ranks(a[both].double().numpy()[None], b[both].double().numpy()[None])[0])


def correlations_of_ranks(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of each row of a with the same row of b, or with b's only one; NaN where one does not vary or is not whole."""
    from scipy.stats import rankdata

    if a.shape[1] < 3:
        return np.full(len(a), np.nan)
    x, y = (rankdata(each, axis=1) - (each.shape[1] + 1) / 2 for each in (a, b))
    scale = np.sqrt((x**2).sum(1) * (y**2).sum(1))
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (x * y).sum(1) / scale
    unknown = (scale < 1e-9) | np.isnan(a).any(1) | np.isnan(b).any(1)
    return np.where(unknown, np.nan, found)


def agreement(a: Maps, b: Float[Tensor, "other layer head"], seed: int = 0, paired: bool = False) -> Agreement:
    """Of the mean maps of two measurements.

    Args:
        a, b: a map a prompt.
        seed: of what is drawn.
        paired: whether row i of both is the same prompt, so that both are resampled alike.
    """
    generator = torch.Generator().manual_seed(seed)
    n = N_DRAWS if min(len(a), len(b)) > 1 else 0
    rows = torch.randint(len(a), (n, len(a)), generator=generator)
    others = rows if paired else torch.randint(len(b), (n, len(b)), generator=generator)
    return _against_layers(a.nanmean(0), b.nanmean(0), means_of(a, rows), means_of(b, others), generator)


def split_half(a: Maps, seed: int = 0) -> Agreement:
    """Of the mean maps of two random halves of the prompts; value, low and high over draws of the halves."""
    generator = torch.Generator().manual_seed(seed)
    n = N_DRAWS if len(a) > 3 else 0
    order = torch.rand(n, len(a), generator=generator).argsort(1)
    first, second = means_of(a, order[:, ::2]), means_of(a, order[:, 1::2])
    found = _against_layers(a[::2].nanmean(0), a[1::2].nanmean(0), first, second, generator)
    drawn = [spearman(x, y) for x, y in zip(first[:20], second[:20], strict=True)]
    return replace(found, value=float(np.mean(drawn)) if drawn else found.value)


def means_of(maps: Maps, rows: Int[Tensor, "draw row"]) -> Float[Tensor, "draw layer head"]:
    """The mean map of each draw of prompts, over those that have a number."""
    counts = torch.zeros(len(rows), len(maps), dtype=torch.float64)
    counts.scatter_add_(1, rows, torch.ones(rows.shape, dtype=torch.float64))
    flat = maps.double().flatten(1)
    means = (counts @ flat.nan_to_num()) / (counts @ (~flat.isnan()).double())  # 0 / 0 is NaN, as it should be
    return means.reshape(len(rows), *maps.shape[1:])


def _against_layers(
    a: Float[Tensor, "layer head"],
    b: Float[Tensor, "layer head"],
    drawn: Float[Tensor, "draw layer head"],
    others: Float[Tensor, "draw layer head"],
    generator: torch.Generator,
) -> Agreement:
    both = ~(a.isnan() | b.isnan())
    observed, nan = spearman(a, b), float("nan")
    values = correlations_of_ranks(drawn[:, both].numpy(), others[:, both].numpy())
    low, high = np.nanquantile(values, [0.025, 0.975]) if np.isfinite(values).any() else (nan, nan)
    n_heads = int(both.sum())
    if np.isnan(observed):
        return Agreement(observed, float(low), float(high), nan, nan, n_heads)
    shuffled = _shuffled(b.masked_fill(~both, torch.nan), generator)[:, both]
    null = correlations_of_ranks(a[both].double().numpy()[None].repeat(N_DRAWS, 0), shuffled.double().numpy())
    p = float((1 + (null >= observed - 1e-12).sum()) / (1 + N_DRAWS))
    return Agreement(observed, float(low), float(high), float(np.nanmean(null)), p, n_heads)


def _shuffled(values: Float[Tensor, "layer head"], generator: torch.Generator) -> Float[Tensor, "draw layer head"]:
    """Draws of the numbers of each layer in another order; what is NaN stays in its place."""
    shuffled = values.expand(N_DRAWS, *values.shape).clone()
    for layer, row in enumerate(values):
        known = (~row.isnan()).nonzero().flatten()
        order = torch.rand(N_DRAWS, len(known), generator=generator).argsort(1)
        shuffled[:, layer, known] = row[known][order]
    return shuffled
