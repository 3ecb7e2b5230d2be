"""Where along the depth the heads lie that look at the picture.

The relative depth of a layer is its number over that of the last layer: 0 the first, 1 the last. The heads in question
are the tenth of all heads with the highest scores. The control is the mean depth of as many
heads that are drawn at random from all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..hooks.heads import HeadSet, ranked
from ..statistics import mean_interval
from .ranks import Maps, means_of

SHARE = 0.1
N_DRAWS = 2000
N_RESAMPLES = 200


@dataclass(frozen=True)
class Depth:
    """Where the top heads lie.

    Attributes:
        n: how many heads.
        value: their mean relative depth, 0 to 1.
        low, high: its 95% interval, resampling prompts and ranking anew.
        control: the mean depth of as many random heads.
        p: the share of random sets that lie at most as deep, the observed one counted as one more.
        p_deeper: the same of those that lie at least as deep.
        thirds: how many lie in the first, the middle and the last third of the layers.
    """

    n: int
    value: float
    low: float
    high: float
    control: float
    p: float
    p_deeper: float
    thirds: tuple[int, int, int]


def n_top(values: Float[Tensor, "layer head"]) -> int:
    """A tenth of the heads that have a score, at least one."""
    return max(1, round(SHARE * int((~values.isnan()).sum())))


def top_heads(values: Float[Tensor, "layer head"], n: int | None = None) -> HeadSet:
    """The heads with the highest scores, a tenth of them by default."""
    return ranked(values, n_top(values) if n is None else n, None, True, "a score")


def mean_depth(heads: HeadSet) -> float:
    """0 the first layer, 1 the last."""
    return sum(layer for layer, _ in heads) / len(heads) / max(1, heads.n_layers - 1)


def third(layer: int, n_layers: int) -> int:
    """0 for the first third of the layers, 1 for the middle one, 2 for the last."""
    return 3 * layer // n_layers


def depth(maps: Maps, seed: int = 0) -> Depth:
    """Where the top heads of the mean map lie."""
    values = maps.nanmean(0)
    top = top_heads(values)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(maps), (N_RESAMPLES if len(maps) > 1 else 0, len(maps)), generator=generator)
    again = means_of(maps, rows)[:, ~values.isnan()].nan_to_num(nan=-torch.inf)
    layers = (~values.isnan()).nonzero()[:, 0].double() / max(1, len(values) - 1)
    resampled = layers[again.topk(len(top), dim=1).indices].mean(1)
    null = layers[torch.rand(N_DRAWS, len(layers), generator=generator).argsort(1)[:, : len(top)]].mean(1)
    observed = mean_depth(top)
    tails = torch.tensor([0.025, 0.975], dtype=torch.float64)
    bounds = resampled.quantile(tails) if len(resampled) else tails * torch.nan
    low, high = bounds.tolist()
    counted = [third(layer, len(values)) for layer, _ in top]
    return Depth(
        len(top),
        observed,
        low,
        high,
        float(null.mean()),
        float((1 + (null <= observed + 1e-12).sum()) / (1 + N_DRAWS)),
        float((1 + (null >= observed - 1e-12).sum()) / (1 + N_DRAWS)),
        (counted.count(0), counted.count(1), counted.count(2)),
    )


def by_layer(maps: Maps) -> dict[str, list[float]]:
    """The mean over each layer's heads, with its 95% interval over prompts."""
    found = mean_interval(maps.nanmean(2))
    return {name: getattr(found, name).tolist() for name in ("mean", "low", "high")}
