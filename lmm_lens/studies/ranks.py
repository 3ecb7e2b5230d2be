"""Rank correlations of head maps, with their intervals and with the control that depth alone explains.

Two maps agree in part because heads of one layer are alike. The control shuffles the heads of each layer of one map:
what correlation is left is the layers' alone. `p` is the share of shuffles that agree at least as well, the map as it is
counted as one more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
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
    return correlation_of_ranks(a[both].double().numpy(), b[both].double().numpy())


def correlation_of_ranks(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.stats import rankdata

    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def agreement(a: Maps, b: Maps, seed: int = 0, paired: bool = False) -> Agreement:
    """Of the mean maps of two measurements.

    Args:
        a, b: a map a prompt.
        seed: of what is drawn.
        paired: whether row i of both is the same prompt, so that both are resampled alike.
    """
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(N_DRAWS if min(len(a), len(b)) > 1 else 0):
        rows = torch.randint(len(a), (len(a),), generator=generator)
        others = rows if paired else torch.randint(len(b), (len(b),), generator=generator)
        values.append(spearman(a[rows].nanmean(0), b[others].nanmean(0)))
    return _against_layers(a.nanmean(0), b.nanmean(0), values, generator)


def split_half(a: Maps, seed: int = 0) -> Agreement:
    """Of the mean maps of two random halves of the prompts; value, low and high over draws of the halves."""
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(N_DRAWS if len(a) > 3 else 0):
        order = torch.randperm(len(a), generator=generator)
        values.append(spearman(a[order[::2]].nanmean(0), a[order[1::2]].nanmean(0)))
    found = _against_layers(a[::2].nanmean(0), a[1::2].nanmean(0), values, generator)
    middle = float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
    return Agreement(middle, found.low, found.high, found.control, found.p, found.n_heads)


def _against_layers(a: Tensor, b: Tensor, values: list[float], generator: torch.Generator) -> Agreement:
    observed = spearman(a, b)
    null = np.array([spearman(a, _shuffled(b, generator)) for _ in range(N_DRAWS)])
    low, high = np.nanquantile(values, [0.025, 0.975]) if np.isfinite(values).any() else (np.nan, np.nan)
    n_heads = int((~(a.isnan() | b.isnan())).sum())
    if np.isnan(observed):
        return Agreement(observed, float(low), float(high), float("nan"), float("nan"), n_heads)
    p = float((1 + (null >= observed - 1e-12).sum()) / (1 + len(null)))
    return Agreement(observed, float(low), float(high), float(np.nanmean(null)), p, n_heads)


def _shuffled(values: Float[Tensor, "layer head"], generator: torch.Generator) -> Float[Tensor, "layer head"]:
    """The numbers of each layer in another order; what is NaN stays in its place."""
    shuffled = values.clone()
    for layer, row in enumerate(values):
        known = (~row.isnan()).nonzero().flatten()
        shuffled[layer, known] = row[known[torch.randperm(len(known), generator=generator)]]
    return shuffled
