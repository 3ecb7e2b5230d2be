"""Head maps of a data set, as records keep them: mean, low and high of each score of each head, and of each layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ..statistics import mean_interval
from .depth import by_layer
from .looks import METRICS, Looks


def maps_of(looks: Looks) -> dict[str, Any]:
    """By query and metric: mean, low and high, Float[layer, head] each; what was not measured is left out."""
    found: dict[str, Any] = {query: {} for query in looks.queries}
    for query, metric, values in _measured(looks):
        interval = mean_interval(values)
        found[query][metric] = {name: getattr(interval, name) for name in ("mean", "low", "high")}
    return found


def layers_of(looks: Looks) -> dict[str, Any]:
    """The same by layer, mean over its heads."""
    found: dict[str, Any] = {query: {} for query in looks.queries}
    for query, metric, values in _measured(looks):
        found[query][metric] = by_layer(values)
    return found


def _measured(looks: Looks) -> Iterator[tuple[str, str, Float[Tensor, "prompt layer head"]]]:
    for query in looks.queries:
        for metric in METRICS:
            values = looks.of(metric, query)
            if not bool(values.isnan().all()):
                yield query, metric, values
