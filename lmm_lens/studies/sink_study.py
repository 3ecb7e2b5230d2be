"""The study of visual attention sinks and VAR (Kang et al., ICLR 2025, arXiv:2503.03321), of one model.

1. Sink dimensions, how they were found, sink tokens by layer and where they lie; the tower's outliers beside them.
2. The heads' visual mass, and the share of it that lies off the sinks.
3. Answers with the sinks masked, beside as many random patches masked; and with VAR over a grid of its transfer
   fraction and its ratio, each beside its matched control. Paired tests, by data set, each of a type of task.
4. Which of the paper's claims hold, as found. What is tested is the paper's setting for a data set's task.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..comparisons import Comparison, compare
from ..data import DataSet
from ..errors import ScoreError, unknown
from ..interventions import VAR, KnockoutSinks
from ..interventions.base import Intervention
from ..runs import RayLike
from ..sinks import SinkReport, find_sinks
from ..sinks.auto import LOOKED_AT
from ..sinks.rule import SinkRule
from ..statistics.resampling import percentiles, resampled_sums
from ..warnings import NothingChangedWarning, counted
from . import sink_claims
from .head_study import Going, check_data, sinks_of
from .looks import Looks, look
from .maps import layers_of, maps_of
from .record import FORMAT, Record, described, plain
from .sink_settings import MASKED, SinkSettings, condition_of
from .sink_tokens import evidence, places, tokens_by_layer, tower

if TYPE_CHECKING:
    from ..lens import Lens


def study_sinks(
    lens: Lens,
    name: str,
    data: Mapping[str, DataSet],
    settings: SinkSettings,
    *,
    folder: Path | None = None,
    ray: RayLike = None,
    changed: str = "refuse",
    progress: bool = False,
) -> Record:
    """The study of one model; arguments and errors as of `study_heads`."""
    check_data("sinks", data, {})
    for given in (settings.tasks, settings.metrics):
        for key in given:
            if key not in data:
                raise ScoreError(unknown("data set", key, tuple(data)))
    going = Going(folder, ray, changed, progress)
    rule, source = sinks_of(lens, data)
    first = next(iter(data.values()))
    prompts = [sample.prompt(lens) for sample in islice(first, LOOKED_AT)]
    report = find_sinks(lens, prompts)
    looks = {key: look(lens, each, rule, **going.to(key, "looks")) for key, each in data.items()}
    compared: dict[str, Comparison] = {}
    if rule is not None:
        compared = {key: _compare(lens, key, each, rule, settings, going) for key, each in data.items()}
    content = {
        "format": FORMAT,
        "study": "sinks",
        **described(lens, name),
        "settings": asdict(settings),
        "sinks": {"dims": rule.dims if rule else (), "threshold": rule.threshold if rule else None, "source": source},
        "found": {**_found(report), "places": places(report), "tower": tower(lens, prompts, report)},
        "evidence": evidence(report),
        "tokens": tokens_by_layer(report),
        **_put_together(looks, compared, data, settings),
        "claims": [each.as_dict() for each in sink_claims.claims(report, looks, compared, settings)],
    }
    record = Record(plain(content))
    if folder is not None:
        record.save(folder)
    return record


def conditions(key: str, rule: SinkRule, settings: SinkSettings) -> dict[str, list[Intervention]]:
    """What answers are compared under."""
    sinks: dict[str, Any] = {"sink_dims": rule.dims, "sink_threshold": rule.threshold}
    grid: dict[str, list[Intervention]] = {
        condition_of(p, rho): [VAR(transfer_fraction=p, min_nonsink_ratio=rho, **sinks)]
        for p, rho in settings.grid(key)
    }
    return {"plain": [], MASKED: [KnockoutSinks(**sinks)], **grid}


def _compare(lens: Lens, key: str, data: DataSet, rule: SinkRule, settings: SinkSettings, going: Going) -> Comparison:
    with counted(NothingChangedWarning):  # the notes of the comparison say so
        return compare(
            lens,
            data,
            conditions(key, rule, settings),
            settings.metrics.get(key, settings.metric),
            controls=settings.controls,
            seed=settings.seed,
            max_new_tokens=settings.max_new_tokens,
            **going.to(key, "answers"),
        )


def _found(report: SinkReport) -> dict[str, Any]:
    return {
        "dims": report.dims,
        "dims_by_mean": report.dims_by_mean,
        "threshold": report.threshold,
        "margin": report.margin,
        "prominence": report.prominence,
        "layers": report.layers,
        "said": repr(report),
        "n": len(report.prompts),
    }


def _put_together(
    looks: Mapping[str, Looks], compared: Mapping[str, Comparison], data: Mapping[str, DataSet], settings: SinkSettings
) -> dict[str, Any]:
    values: list[dict[Any, Any]] = []
    tests: list[dict[Any, Any]] = []
    seconds: list[dict[str, Any]] = []
    notes: list[dict[str, str]] = []
    for key, each in compared.items():
        about = {"data": key, "task": settings.task(key), "metric": each.metric}
        grid = {condition_of(p, rho): (p, rho) for p, rho in settings.grid(key)}
        for row in each.to_pandas(seed=settings.seed).drop(columns="seconds").to_dict("records"):
            setting = grid.get(str(row["condition"]).removesuffix(", controls"))
            fraction, ratio = setting or (None, None)
            row |= {"fraction": fraction, "ratio": ratio, "paper": setting == settings.paper(key)}
            values.append({**about, **row})
        tests += [{**about, **row} for row in each.tests(seed=settings.seed).to_dict("records")]
        seconds += [{"data": key, **row} for row in times(each, settings.seed)]
        notes += [{"data": key, "note": note} for note in each.notes]
    return {
        "data": {
            key: {"n": len(looks[key].ids), "task": settings.task(key), "settings": each.settings}
            for key, each in data.items()
        },
        "maps": {key: maps_of(each) for key, each in looks.items()},
        "layers": {key: layers_of(each) for key, each in looks.items()},
        "conditions": values,
        "tests": tests,
        "seconds": seconds,
        "notes": notes,
    }


def times(compared: Comparison, seed: int = 0, resamples: int = 1000) -> list[dict[str, Any]]:
    """What each condition costs: its seconds over the plain ones, summed over items, with a bootstrap interval.

    The first item warms everything up and is left out, where there are others.
    """
    used = compared.seconds[1:] if len(compared.seconds) > 1 else compared.seconds
    named = [name for name in compared.names if name not in compared.control_of]
    chosen = used[:, [compared.column(name) for name in named]]
    total = chosen.nansum(0)
    sums = resampled_sums(chosen.nan_to_num(), resamples, torch.Generator().manual_seed(seed))
    low, high = percentiles(sums / sums[:, :1], 0.95)
    return [
        {
            "condition": name,
            "seconds": float(total[i] / len(used)),
            "times_plain": float(total[i] / total[0]),
            "low": float(low[i]),
            "high": float(high[i]),
        }
        for i, name in enumerate(named)
    ]
