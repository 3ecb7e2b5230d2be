"""Models side by side: what each is, and how alike they are by relative depth.

Models have different numbers of layers and heads, so maps cannot be compared head by head. Profiles can: a score's
mean over the heads of a layer, at eleven relative depths from the first layer (0) to the last (1), linear between
layers. Spearman's correlation of two profiles is set against those of the second in random orders; since neighbouring
depths are alike, this p is a bound from below.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .ranks import correlations_of_ranks
from .record import Record

if TYPE_CHECKING:
    import pandas

DEPTHS = tuple(i / 10 for i in range(11))
N_ORDERS = 2000


def profile(record: Record, metric: str | None = None, query: str | None = None) -> list[float]:
    """A score by relative depth, at `DEPTHS`, mean over data sets; by default what heads were ranked by."""
    settings = record["settings"]
    metric, query = metric or settings["rank_by"], query or settings["queries"][0]
    layers = [
        np.array([np.nan if x is None else x for x in each[query][metric]["mean"]], dtype=float)
        for each in record["layers"].values()
    ]
    values = torch.tensor(np.array(layers)).nanmean(0).numpy()  # numpy's own warns of layers without heads
    at = np.linspace(0, 1, len(values)) if len(values) > 1 else np.zeros(1)
    known = ~np.isnan(values)
    return [float(x) for x in np.interp(DEPTHS, at[known], values[known])]


def summary(records: Sequence[Record]) -> pandas.DataFrame:
    """One row a model."""
    import pandas

    return pandas.DataFrame([_summary(record) for record in records])


def _summary(record: Record) -> dict[str, Any]:
    model, claims = record["model"], record["claims"]
    found: dict[str, Any] = {
        "model": record.name,
        "family": model["family"],
        "million parameters": model["n_parameters"] / 1e6,
        "layers": model["n_layers"],
        "heads": model["n_heads"],
        "sink dimensions": " ".join(map(str, record["sinks"]["dims"])) or "none",
    }
    if record.study == "heads":
        found["depth of top heads"] = float(np.mean([row["value"] for row in record["depth"]]))
    return found | {
        verdict: sum(claim["verdict"] == verdict for claim in claims)
        for verdict in ("holds", "contradicted", "open", "not tested")
    }


def correlations(records: Sequence[Record], seed: int = 0) -> pandas.DataFrame:
    """Every two models: family of both, correlation of their profiles, p against random orders of depths.

    Below them, where there are at least four models, the correlation of the depth of the top heads with the number of
    parameters, p against random orders of the models.
    """
    import pandas

    columns = ["a", "b", "same family", "what", "correlation", "p", "n"]
    rows = []
    if records and records[0].study == "heads":
        draw = np.random.default_rng(seed)
        for a, b in combinations(records, 2):
            same = a["model"]["family"] == b["model"]["family"]
            found = _tested(profile(a), profile(b), draw)
            rows.append([a.name, b.name, same, "profile by relative depth", *found, len(DEPTHS)])
        if len(records) > 3:
            sizes = [record["model"]["n_parameters"] for record in records]
            depths = [float(np.mean([row["value"] for row in record["depth"]])) for record in records]
            found = _tested(sizes, depths, draw)
            rows.append(["all", "all", False, "size ~ depth of top heads", *found, len(records)])
    return pandas.DataFrame(rows, columns=columns)


def _tested(a: Sequence[float], b: Sequence[float], draw: np.random.Generator) -> tuple[float, float]:
    """Spearman's correlation, and how often a random order agrees at least as well, two-sided."""
    x, y = np.array([a], dtype=float), np.array([b], dtype=float)
    observed = float(correlations_of_ranks(x, y)[0])
    if np.isnan(observed):
        return observed, observed
    orders = draw.permuted(y.repeat(N_ORDERS, 0), axis=1)
    null = correlations_of_ranks(x.repeat(N_ORDERS, 0), orders)
    return observed, float((1 + (np.abs(null) >= abs(observed) - 1e-12).sum()) / (1 + N_ORDERS))
