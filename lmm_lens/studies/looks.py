"""What every head looks at on every sample of a data set: all scores of one forward, into a run folder.

One forward a sample answers for all metrics at the last prompt token, and one short generation for the first generated
token, the row of the CVPR 2025 paper's code (Bi et al., arXiv:2412.18108).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..answers.items import Item, Items, key_of
from ..data import DataSet, Sample
from ..data.problems import Bad
from ..data.settings import without_contents
from ..errors import PromptError, ScoreError
from ..lens.travelling import TravellingLens
from ..prompts.prompt import Prompt
from ..runs import RayLike, RunFolder, Store, stream
from ..runs.checkpoint import applied_in
from ..runs.job import LeftOutError
from ..scoring.metrics import HEAD_METRICS
from ..scoring.regions import region_mask
from ..scoring.score import QUERIES, Scorer, check_visual
from ..sinks.rule import SinkRule

if TYPE_CHECKING:
    from ..lens import Lens

KIND = "looks of heads"
METRICS = ("visual_mass", "nonsink_mass", "nonsink_ratio", "concentration", "visual_preference", "region_mass")
"""Measured of every head, in this order."""


@dataclass(frozen=True, eq=False)
class Looks:
    """The scores of every head on every sample.

    Attributes:
        values: NaN where a metric has nothing to go by: region_mass without a box, layers without heads.
        queries: whose attention: "last", "answer".
        ids: of the samples.
        left_out: the rows that could not be used, name to why.
    """

    values: Float[Tensor, "prompt query metric layer head"]
    queries: tuple[str, ...]
    ids: tuple[str, ...]
    left_out: Mapping[str, str]

    @classmethod
    def of_store(cls, store: Store, queries: tuple[str, ...]) -> Looks:
        """What a run has finished.

        Raises:
            ScoreError: no sample could be used.
        """
        names = [key.rpartition("\t")[0] for part in store.parts() for key in part.keys]
        numbers = [index for at in store.ranges for index in at]
        notes = store.notes()
        left_out = {name: notes[index] for name, index in zip(names, numbers, strict=True) if index in notes}
        used = torch.tensor([index not in notes for index in numbers])
        if not bool(used.any()):
            raise ScoreError(f"no sample can be used; the first is left out for: {next(iter(left_out.values()), '-')}")
        ids = tuple(name for name, index in zip(names, numbers, strict=True) if index not in notes)
        return cls(store.tensors()["looks"][used].double(), queries, ids, left_out)

    def of(self, metric: str, query: str) -> Float[Tensor, "prompt layer head"]:
        """One metric at one query."""
        return self.values[:, self.queries.index(query), METRICS.index(metric)]

    def among(self, ids: Collection[str]) -> Looks:
        """Of these samples alone.

        Raises:
            ScoreError: none of them was scored.
        """
        kept = torch.tensor([name in ids for name in self.ids])
        if not bool(kept.any()):
            raise ScoreError(f"none of {len(ids)} samples was scored, of {len(self.ids)} that were: give more samples")
        names = tuple(name for name in self.ids if name in ids)
        return Looks(self.values[kept], self.queries, names, self.left_out)


def look(
    lens: Lens,
    data: DataSet,
    rule: SinkRule | None,
    queries: tuple[str, ...] = ("last",),
    *,
    folder: Path | None = None,
    ray: RayLike = None,
    changed: str = "refuse",
    progress: bool = False,
) -> Looks:
    """Score every head on every sample.

    Args:
        lens: the model.
        data: questions about pictures.
        rule: which tokens are sinks; None where the model has none, and every visual token then is no sink.
        queries: of `QUERIES`.
        folder, ray, changed, progress: as in `head_effects`.

    Raises:
        ScoreError: a sample without a picture, a box outside its picture, or a folder of another run.
    """
    about: dict[str, Any] = {
        "model": lens.identity,
        **applied_in(lens),
        "queries": list(queries),
        "metrics": list(METRICS),
        "rule": None if rule is None else [list(rule.dims), rule.threshold],
        "data": without_contents({name: value for name, value in data.settings.items() if name != "on_bad"}),
    }
    opened = None if folder is None else RunFolder(folder, KIND, about)
    try:
        make = _MakeWork(TravellingLens.of(lens, about["model"], travels=ray is not None), rule, queries)
        items = Items(data, None, "")
        what = "looking at heads"
        store = stream(items, make, key_of, opened, ray=ray, progress=progress, what=what, changed=changed)
        if opened is not None and not opened.finished:
            opened.finish(store.n_items)
        return Looks.of_store(store, queries)
    finally:
        if opened is not None:
            opened.close()


@dataclass(eq=False)
class _MakeWork:
    lens: TravellingLens
    rule: SinkRule | None
    queries: tuple[str, ...]

    def __call__(self) -> LookWork:
        return LookWork(self.lens.open(), self.rule, self.queries)


@dataclass(eq=False)
class LookWork:
    """The scores on one sample after the other."""

    lens: Lens
    rule: SinkRule | None
    queries: tuple[str, ...]

    def __call__(self, item: Item) -> dict[str, Tensor]:
        """Float[query, metric, layer, head].

        Raises:
            LeftOutError: the sample cannot be used, and may be left out.
        """
        if isinstance(item.source, Bad):
            raise LeftOutError(f"{item.source.reason}\t{item.source.detail}", {"looks": self._nothing()})
        assert isinstance(item.source, Sample)
        try:
            prompt = item.source.prompt(self.lens)
            check_visual(prompt, 0, f"attention to the picture ({item.name})")
            return {"looks": self._looks(item.source, prompt)}
        except (PromptError, ScoreError) as error:
            if not item.may_be_left_out:
                raise
            raise LeftOutError(f"no score\t{str(error).splitlines()[0]}", {"looks": self._nothing()}) from None

    def _looks(self, sample: Sample, prompt: Prompt) -> Tensor:
        boxes = [list(sample.boxes)] if sample.boxes else None
        wanted = [name for name in METRICS if self._measured(name, boxes is not None)]
        region = None if boxes is None else region_mask(prompt, boxes)
        found = self._nothing()
        for at, query in enumerate(self.queries):
            scorer = Scorer(tuple(HEAD_METRICS[name] for name in wanted), query, self.rule, region)
            scores = scorer.score(self.lens, prompt)[:, 0]
            found[at, [METRICS.index(name) for name in wanted]] = scores
            if self.rule is None:  # without sinks all of the visual mass is off them
                mass = found[at, METRICS.index("visual_mass")]
                found[at, METRICS.index("nonsink_mass")] = mass
                found[at, METRICS.index("nonsink_ratio")] = torch.where(mass > 0, 1.0, torch.nan)
        return found

    def _measured(self, name: str, has_boxes: bool) -> bool:
        metric = HEAD_METRICS[name]
        return (self.rule is not None or not metric.needs_sinks) and (has_boxes or not metric.needs_boxes)

    def _nothing(self) -> Tensor:
        shape = len(self.queries), len(METRICS), self.lens.n_layers, self.lens.n_heads
        return torch.full(shape, torch.nan)


def check_queries(queries: tuple[str, ...]) -> None:
    """ScoreError for a query that is none."""
    if not queries or any(query not in QUERIES for query in queries):
        raise ScoreError(f"queries are some of {', '.join(QUERIES)}, given {', '.join(map(str, queries)) or 'none'}")
