"""The study of vision heads (Bi et al., CVPR 2025, arXiv:2412.18108), of one model on any data sets.

1. Every head's looks at every sample (`looks`), at the last prompt token and, if asked for, the first generated one.
2. Where along the depth the top heads lie; whether rankings agree between data sets, halves of the prompts, metrics,
   queries, and with the effect of removing each head alone (last row).
3. Heads removed by rank in all rows, chosen on one half of the samples and removed on the other, beside as many random
   heads of the same layers, on questions with a picture and on questions without one.
4. Which of the paper's claims hold, as found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import combinations, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..data import DataSet
from ..effects import HeadEffects, head_effects
from ..errors import ScoreError
from ..runs import RayLike
from ..sinks import find_sinks
from ..sinks.auto import LOOKED_AT
from ..sinks.rule import SinkRule, is_known, rule_for
from . import head_claims
from .curves import Arm, ablate, arms, curve
from .depth import depth
from .looks import METRICS, Looks, check_queries, look
from .maps import layers_of, maps_of
from .ranks import Agreement, agreement, split_half
from .record import FORMAT, Record, check_name, described, plain

if TYPE_CHECKING:
    from ..lens import Lens

AGREEING = ("visual_mass", "nonsink_mass", "concentration", "visual_preference", "region_mass")


@dataclass(frozen=True)
class HeadSettings:
    """What a study of heads depends on beside the model and the data.

    Attributes:
        queries: whose attention: "last", "answer", or both.
        rank_by: the score that heads are ranked by; without sinks nonsink_mass is visual_mass.
        ks: how many top heads are removed; powers of two up to a quarter of all by default.
        controls: random draws beside each set.
        seed: of everything that is drawn.

    Raises:
        ScoreError: one of these cannot be meant.
    """

    queries: tuple[str, ...] = ("last",)
    rank_by: str = "nonsink_mass"
    ks: tuple[int, ...] | None = None
    controls: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        check_queries(self.queries)
        if self.rank_by not in METRICS:
            raise ScoreError(f"heads are ranked by one of {', '.join(METRICS)}, given {self.rank_by!r}")
        if self.controls < 1:
            raise ScoreError(f"a study has at least 1 random control, given controls={self.controls}")
        if self.ks is not None and (not self.ks or min(self.ks) < 1):
            raise ScoreError(f"ks are numbers of heads, each at least 1, given {list(self.ks)}")


@dataclass(frozen=True, eq=False)
class Found:
    """What one model's runs gave, before it is put together."""

    looks: Mapping[str, Looks]
    effects: Mapping[str, HeadEffects]
    visual: Mapping[str, HeadEffects]
    text: Mapping[str, HeadEffects]
    arms: tuple[Arm, ...]


def study_heads(
    lens: Lens,
    name: str,
    data: Mapping[str, DataSet],
    text: Mapping[str, DataSet],
    settings: HeadSettings,
    *,
    folder: Path | None = None,
    ray: RayLike = None,
    changed: str = "refuse",
    progress: bool = False,
) -> Record:
    """The study of one model; what is finished in the folder is not computed again.

    Args:
        lens: the model.
        name: what the study calls it.
        data: questions about pictures, by name.
        text: questions without a picture, by name.
        settings: what else it depends on.
        folder: of the model; a run folder a data set and stage is made in it, and at the end `study.json`.
        ray, changed, progress: as in `head_effects`.

    Raises:
        ScoreError: no data sets, two of one name, a name that could not be a folder's, samples without a picture in
            `data` or with one in `text`, or a folder of another study.
    """
    check_data("heads", data, text)
    rule, source = sinks_of(lens, data)
    found = _run(lens, data, text, rule, settings, Going(folder, ray, changed, progress))
    content = {
        "format": FORMAT,
        "study": "heads",
        **described(lens, name),
        "settings": asdict(settings),
        "sinks": {"dims": rule.dims if rule else (), "threshold": rule.threshold if rule else None, "source": source},
        **_put_together(found, {**data, **text}, settings),
    }
    record = Record(plain(content))
    if folder is not None:
        record.save(folder)
    return record


@dataclass(frozen=True, eq=False)
class Going:
    """How runs go: into which folder, where, and what of changed samples."""

    folder: Path | None
    ray: RayLike
    changed: str
    progress: bool

    def to(self, data: str, stage: str) -> dict[str, Any]:
        """The arguments of one stage on one data set; its folder is made ready."""
        where = None
        if self.folder is not None:
            where = self.folder / data / stage
            where.parent.mkdir(parents=True, exist_ok=True)
        return {"folder": where, "ray": self.ray, "changed": self.changed, "progress": self.progress}


def check_data(study: str, data: Mapping[str, DataSet], text: Mapping[str, DataSet]) -> None:
    """ScoreError for data sets that a study cannot be made on, as far as their names and `text` say; reads `text`."""
    if not data:
        raise ScoreError(f"a study of {study} needs at least one data set of questions about pictures")
    for key in (*data, *text):
        check_name("data set", key)
    twice = sorted(data.keys() & text.keys())
    if twice:
        raise ScoreError(
            f"two data sets are called {twice[0]!r}, one with pictures and one without: call one otherwise"
        )
    for key, each in text.items():
        shown = next((sample.id for sample in each if sample.images), None)
        if shown is not None:
            raise ScoreError(
                f"{key!r} was given as questions without a picture, and {shown} has one\n"
                "  give it as data, or questions that can be asked without"
            )


def sinks_of(lens: Lens, data: Mapping[str, DataSet]) -> tuple[SinkRule | None, str]:
    """The model's sink rule and where it is from: its card, a paper, or else what its first samples show."""
    if is_known(lens.adapter.config):
        rule = rule_for(lens.adapter.config)
        return (rule, rule.source) if rule.dims else (None, f"none: {rule.source}")
    first = next(iter(data.values()))
    report = find_sinks(lens, [sample.prompt(lens) for sample in islice(first, LOOKED_AT)])
    if report:
        return report.rule.checked(lens.shape.d_model), "found on the first samples"
    return None, f"none found: {report}"


def _run(
    lens: Lens,
    data: Mapping[str, DataSet],
    text: Mapping[str, DataSet],
    rule: SinkRule | None,
    settings: HeadSettings,
    going: Going,
) -> Found:
    looks = {key: look(lens, each, rule, settings.queries, **going.to(key, "looks")) for key, each in data.items()}
    halves = {key: each.half(1) for key, each in data.items()}
    chosen = choose(looks, data, settings)
    effects = {key: head_effects(lens, half, **going.to(key, "effects")) for key, half in halves.items()}
    visual = {key: ablate(lens, half, chosen, **going.to(key, "removed")) for key, half in halves.items()}
    without = {key: ablate(lens, each, chosen, **going.to(key, "removed")) for key, each in text.items()}
    return Found(looks, effects, visual, without, chosen)


def choose(looks: Mapping[str, Looks], data: Mapping[str, DataSet], settings: HeadSettings) -> tuple[Arm, ...]:
    """The heads to remove, by their mean over data sets on one half of each."""
    maps = []
    for key, each in looks.items():
        first = {sample.id for sample in data[key].half(0)}
        maps.append(each.among(first).of(settings.rank_by, settings.queries[0]).nanmean(0))
    values = torch.stack(maps).nanmean(0)
    if bool(values.isnan().all()):
        raise ScoreError(f"no head has a {settings.rank_by}: rank_by needs samples with boxes\n  rank by another score")
    return arms(values, settings.ks, settings.controls, settings.seed)


# ---------------------------------------------------------------------- putting it together


def _put_together(found: Found, data: Mapping[str, DataSet], settings: HeadSettings) -> dict[str, Any]:
    query, seed = settings.queries[0], settings.seed
    ranked = {key: each.of(settings.rank_by, query) for key, each in found.looks.items()}
    depths = {key: depth(maps, seed) for key, maps in ranked.items()}
    pairs = {f"{a} ~ {b}": agreement(ranked[a], ranked[b], seed) for a, b in combinations(ranked, 2)}
    causal = {key: _with_effects(ranked[key], found.looks[key], found.effects[key], seed) for key in ranked}
    n = {key: len(each.ids) for key, each in found.looks.items()}
    n_pairs = {f"{a} ~ {b}": min(n[a], n[b]) for a, b in combinations(ranked, 2)}
    claims = [
        *head_claims.of_depth(depths, n),
        *head_claims.of_removal(found.visual, found.text, found.arms, seed),
        *head_claims.of_data_sets(pairs, n_pairs),
        *head_claims.of_effects(causal, {key: found.effects[key].n_prompts for key in causal}, settings.rank_by),
    ]
    inside = {key: _within(each, settings) for key, each in found.looks.items()}
    rows = [_row(name, "data sets", each) for name, each in pairs.items()]
    rows += [_row(key, what, each) for key, rows_of in inside.items() for what, each in rows_of.items()]
    rows += [_row(key, f"{settings.rank_by} ~ effect of removal", each) for key, each in causal.items()]
    removed = {**{key: (each, "with a picture") for key, each in found.visual.items()}}
    removed |= {key: (each, "without a picture") for key, each in found.text.items()}
    return {
        "data": {
            key: {"n": n.get(key, found.text[key].n_prompts if key in found.text else 0), "settings": each.settings}
            for key, each in data.items()
        },
        "maps": {key: maps_of(each) for key, each in found.looks.items()},
        "layers": {key: layers_of(each) for key, each in found.looks.items()},
        "effects": {key: _effects(each) for key, each in found.effects.items()},
        "depth": [{"data": key, **asdict(each)} for key, each in depths.items()],
        "agreement": rows,
        "removal": [
            {"data": key, "questions": kind, **row}
            for key, (each, kind) in removed.items()
            for row in curve(each, found.arms, seed)
        ],
        "claims": [claim.as_dict() for claim in claims],
    }


def _with_effects(maps: torch.Tensor, looks: Looks, effects: HeadEffects, seed: int) -> Agreement:
    """Of scores with effects on the samples that have both."""
    at = {name: i for i, name in enumerate(looks.ids)}
    shared = [(at[name], i) for i, name in enumerate(effects.ids) if name in at]
    if not shared:
        raise ScoreError("no sample has both looks and effects: give more samples")
    mine, theirs = (torch.tensor(each) for each in zip(*shared, strict=True))
    values = torch.full((len(theirs), *maps.shape[1:]), torch.nan, dtype=torch.float64)
    for column, unit in enumerate(effects.units):
        (head,) = unit
        values[:, head[0], head[1]] = effects.per_prompt[theirs, column]
    return agreement(maps[mine], values, seed, paired=True)


def _within(looks: Looks, settings: HeadSettings) -> dict[str, Agreement]:
    """Between halves of the prompts, between metrics, between queries."""
    query, rank_by, seed = settings.queries[0], settings.rank_by, settings.seed
    mine = looks.of(rank_by, query)
    found = {f"{rank_by}, halves of the prompts": split_half(mine, seed)}
    for metric in AGREEING:
        other = looks.of(metric, query)
        if metric != rank_by and not bool(other.isnan().all()) and not torch.equal(other, mine):
            found[f"{rank_by} ~ {metric}"] = agreement(mine, other, seed, paired=True)
    mass, concentration = looks.of("visual_mass", query), looks.of("concentration", query)
    if "concentration" != rank_by != "visual_mass":
        found["visual_mass ~ concentration"] = agreement(mass, concentration, seed, paired=True)
    if len(looks.queries) > 1:
        found[f"{rank_by}, last row ~ answer row"] = agreement(
            looks.of(rank_by, "last"), looks.of(rank_by, "answer"), seed, paired=True
        )
    return found


def _row(data: str, between: str, found: Agreement) -> dict[str, Any]:
    return {"data": data, "between": between, **asdict(found)}


def _effects(effects: HeadEffects) -> dict[str, Any]:
    """What the answers lose without each head, [layer][head]; positive where a head helps."""
    table = effects.to_pandas().dropna(subset=["layer", "head"])
    shape = tuple(effects.about["shape"])
    maps = {name: torch.full(shape, torch.nan, dtype=torch.float64) for name in ("effect", "low", "high", "p_holm")}
    for row in table.to_dict("records"):
        for name, each in maps.items():
            each[int(row["layer"]), int(row["head"])] = row[name]
    return {"rows": effects.rows, "metric": effects.metric, "n": effects.n_prompts, **maps}
