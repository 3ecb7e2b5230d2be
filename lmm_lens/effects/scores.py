"""What a sweep over heads found: the effect of each in any metric, with intervals, tests, tables, figures, files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..answers.outcomes import ANSWER_METRICS, YES_NO, Outcomes, yes_no_counts, yes_no_scores
from ..data.problems import Problems
from ..errors import ScoreError, unknown
from ..hooks.heads import DECODER, VISION, HeadSet, ranked
from ..replay.ways import HALVED, Way
from ..runs import RunFolder, Store, files
from ..statistics.resampling import bootstrap_interval, percentiles, resampled_sums
from .own import metric_in, own_in
from .screen import Screen, from_about

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

    from ..lens import Lens

KIND = "head effects"
TENSORS = ("logits", "log_sum", "said", "marks", "is_yes", "way")


@dataclass(frozen=True, eq=False)
class HeadEffects:
    """The effect of ablating each unit on each prompt.

    Attributes:
        units: what was ablated at once, a head or several.
        metric: in which `per_prompt` is given.
        clean_outcomes: what the plain forward of each prompt said.
        outcomes: what it said with each unit ablated, [prompt, unit].
        is_yes: Int[prompt], 1 where the right answer is yes, 0 where it is no, -1 elsewhere.
        ways: Int[prompt], how the ablated forwards were computed, numbers of `lmm_lens.replay.ways.Way`, and
            `HALVED` more where memory had run out.
        ids: the prompts' names.
        left_out: the rows that could not be used, name to what is wrong with them.
        about: the model, the ablation, the rows and what else the numbers depend on.
    """

    units: tuple[HeadSet, ...]
    metric: str
    clean_outcomes: Outcomes
    outcomes: Outcomes
    is_yes: Int[Tensor, " prompt"]
    ways: Int[Tensor, " prompt"]
    ids: tuple[str, ...]
    about: Mapping[str, Any] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_store(cls, store: Store, units: tuple[HeadSet, ...], about: Mapping[str, Any], metric: str) -> HeadEffects:
        """What a run has finished so far.

        Raises:
            ScoreError: every row was left out.
        """
        ids = [key.rpartition("\t")[0] for part in store.parts() for key in part.keys]
        numbers = [index for at in store.ranges for index in at]
        tensors, notes = store.tensors(), store.notes()
        left_out = {name: notes[index] for name, index in zip(ids, numbers, strict=True) if index in notes}
        if len(left_out) == len(ids):
            raise ScoreError(f"no prompt can be used: {Problems.of_notes(left_out)}")
        used = tensors["way"] != Way.LEFT_OUT
        ids = [name for name, is_used in zip(ids, used.tolist(), strict=True) if is_used]
        return cls._of({name: rows[used] for name, rows in tensors.items()}, ids, units, about, metric, left_out)

    @classmethod
    def open(cls, folder: str | os.PathLike[str], metric: str = "log_prob") -> HeadEffects:
        """What a run folder holds, finished or not.

        Raises:
            ScoreError: it is no run folder of head effects, or nothing in it is finished.
        """
        opened = RunFolder.open(folder, KIND)
        if not opened.n_items:
            raise ScoreError(f"the run folder {opened.path.name!r} has no finished prompts yet")
        return cls.of_store(opened, _units_in(opened.about), opened.about, metric)

    @classmethod
    def _of(
        cls,
        tensors: Mapping[str, Tensor],
        ids: Sequence[str],
        units: tuple[HeadSet, ...],
        about: Mapping[str, Any],
        metric: str,
        left_out: Mapping[str, str],
    ) -> HeadEffects:
        metric_in(about, metric)
        everything = Outcomes.from_tensors(tensors)
        return cls(
            units=units,
            metric=metric,
            clean_outcomes=everything[:, 0],
            outcomes=everything[:, 1:],
            is_yes=tensors["is_yes"],
            ways=tensors["way"],
            ids=tuple(ids),
            about=about,
            left_out=left_out,
        )

    # ------------------------------------------------------------------ numbers

    def of(self, metric: str) -> HeadEffects:
        """The same sweep in another metric; nothing is computed anew."""
        metric_in(self.about, metric)
        return replace(self, metric=metric)

    @property
    def meaning(self) -> str:
        """What the metric is, with its unit."""
        return metric_in(self.about, self.metric).meaning

    @property
    def ablation(self) -> str:
        """What was done to the heads."""
        return str(self.about["ablation"])

    @property
    def rows(self) -> str:
        """In which rows."""
        return str(self.about["rows"])

    @property
    def n_prompts(self) -> int:
        """How many prompts."""
        return len(self.ids)

    @property
    def problems(self) -> Problems:
        """The rows that were left out, counted by what is wrong with them."""
        return Problems.of_notes(self.left_out)

    @cached_property
    def clean(self) -> Float[Tensor, " prompt"]:
        """The metric of the plain forwards, fp64."""
        return metric_in(self.about, self.metric).of(self.clean_outcomes)

    @cached_property
    def ablated(self) -> Float[Tensor, "prompt unit"]:
        """The metric with each unit ablated, fp64."""
        return metric_in(self.about, self.metric).of(self.outcomes)

    @property
    def per_prompt(self) -> Float[Tensor, "prompt unit"]:
        """The effects: clean minus ablated, positive where the unit helps."""
        return self.clean[:, None] - self.ablated

    @property
    def mean(self) -> Float[Tensor, " unit"]:
        """The mean effect of each unit."""
        return self.per_prompt.mean(0)

    @property
    def values(self) -> Float[Tensor, "layer head"]:
        """The mean effect of each head; NaN for heads that were not ablated.

        Raises:
            ScoreError: sets of several heads were ablated at once.
        """
        several = [unit for unit in self.units if len(unit) > 1]
        if several:
            raise ScoreError(
                f"{len(several)} units are sets of several heads, whose effect is no single head's\n"
                "  use .mean, .to_pandas(), or head_attribution(...) to divide it among the heads"
            )
        values = torch.full(tuple(self.about["shape"]), torch.nan, dtype=torch.float64)
        for unit, mean in zip(self.units, self.mean, strict=True):
            values[next(iter(unit))] = mean
        return values

    @property
    def screen(self) -> Screen | None:
        """How the heads were chosen, and how far that can be trusted; None where all were ablated."""
        told = self.about.get("screen")
        if told is None:
            return None
        return from_about(told, self.about["shape"], self.of(told["metric"]).values)

    def interval(self, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Bootstrap interval of each mean effect over prompts, paired: low and high, Float[unit]."""
        return bootstrap_interval(self.per_prompt, level, resamples, seed)

    def top(self, n: int, layers: Iterable[int] | None = None) -> HeadSet:
        """The n heads with the largest effect, best first, among all layers or the given ones.

        Raises:
            ScoreError: there are fewer heads than that, or units are sets.
        """
        return ranked(self.values, n, layers, True, "an effect", str(self.about.get("part", DECODER)))

    # ------------------------------------------------------------------ tables

    def to_pandas(self, level: float = 0.95, seed: int = 0) -> pandas.DataFrame:
        """One row a unit: effect, interval, p of a sign-flip test, corrected for the number of units; largest first."""
        from ..statistics import effects_table

        return effects_table(self.units, self.per_prompt, level=level, seed=seed)

    def total(self, statistic: str, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> pandas.DataFrame:
        """A statistic of the whole data set, plain and under each ablation, with its bootstrap interval.

        Args:
            statistic: a metric, or of yes/no questions "precision", "recall", "f1" (yes is the positive class) or
                "yes_ratio" (of the model's answers).
            level, resamples, seed: of the interval, which resamples prompts.

        Returns:
            Columns unit ("none" first), value, low, high.

        Raises:
            ScoreError: no such statistic, or prompts whose right answer is neither yes nor no.
        """
        import pandas

        known = (*ANSWER_METRICS, *own_in(self.about), *YES_NO)
        if statistic not in known:
            raise ScoreError(unknown("statistic", statistic, known))
        if statistic not in YES_NO:
            each = self.of(statistic)
            samples = torch.cat([each.clean[:, None], each.ablated], 1)
            value, (low, high) = samples.mean(0), bootstrap_interval(samples, level, resamples, seed)
        else:
            value, low, high = self._yes_no(statistic, level, resamples, seed)
        names = ["none", *(str(unit) for unit in self.units)]
        return pandas.DataFrame({"unit": names, "value": value.numpy(), "low": low.numpy(), "high": high.numpy()})

    def _yes_no(self, statistic: str, level: float, resamples: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        if bool((self.is_yes < 0).any()):
            which = self.ids[int((self.is_yes < 0).nonzero()[0])]
            raise ScoreError(f"{statistic} is of yes/no questions, and the right answer of {which} is neither")
        counts = yes_no_counts(Outcomes.from_tensors(self._tensors()), self.is_yes)
        n = len(counts)
        sums = resampled_sums(counts, resamples, torch.Generator().manual_seed(seed))
        low, high = percentiles(yes_no_scores(sums, n)[statistic], level)
        return yes_no_scores(counts.sum(0), n)[statistic], low, high

    @property
    def how(self) -> str:
        """How the ablated forwards were computed, in words."""
        ways = [way for way in Way if way != Way.LEFT_OUT]
        counted = torch.bincount(self.ways % HALVED, minlength=len(ways)).tolist()
        parts = [f"{n} prompts: {way.words}" for way, n in zip(ways, counted, strict=True) if n]
        n_halved = int((self.ways >= HALVED).sum())
        if n_halved:
            parts.append(f"{n_halved} of them in smaller batches, since memory ran out, so that last bits may differ")
        return "; ".join(parts)

    def plot(self, ax: Axes | None = None) -> Axes:
        """A layer x head map of the mean effects, those that survive Holm's correction outlined."""
        from .figures import effect_map

        return effect_map(self, ax)

    # ------------------------------------------------------------------ files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file: the numbers, and everything else as JSON in its header."""
        tensors = {**self._tensors(), "is_yes": self.is_yes, "way": self.ways}
        about = {"metric": self.metric, "ids": list(self.ids), "about": dict(self.about)}
        files.write(path, KIND, tensors, {**about, "left_out": dict(self.left_out)})

    @classmethod
    def load(cls, path: str | os.PathLike[str], lens: Lens | None = None) -> HeadEffects:
        """Read effects back; with a lens, they must be of its model.

        Raises:
            ScoreError: no such file, a truncated, damaged or changed one, one of another kind, or of another model.
        """
        fields = ("metric", "ids", "about", "left_out")
        tensors, about = files.read(path, KIND, TENSORS, fields)
        with files.understood(path, KIND):
            if own_in(about["about"]):
                tensors, about = files.read(path, KIND, (*TENSORS, "own"), fields)
            of = {**about["about"], "model": dict(about["about"]["model"])}
            units = _units_in(of)
            each = {"prompt": len(about["ids"]), "1 + unit": 1 + len(units)}
            for name in ("log_sum", "said", "marks"):
                files.check_numbers(path, name, tensors[name], each)
            files.check_numbers(path, "logits", tensors["logits"], {**each, "answer": 2})
            if "own" in tensors:
                files.check_numbers(path, "own", tensors["own"], each)
            for name in ("is_yes", "way"):
                files.check_numbers(path, name, tensors[name], {"prompt": len(about["ids"])})
            if lens is not None:
                files.check_model(path, of["model"], lens.identity)
            return cls._of(tensors, about["ids"], units, of, about["metric"], dict(about["left_out"]))

    def _tensors(self) -> dict[str, Tensor]:
        """The outcomes, [prompt, 1 + unit]: of the plain forward first."""
        clean, ablated = self.clean_outcomes.tensors(), self.outcomes.tensors()
        return {name: torch.cat([clean[name][:, None], ablated[name]], 1) for name in clean}

    def __repr__(self) -> str:
        order = self.mean.nan_to_num(-torch.inf).argsort(descending=True)[:3].tolist()
        best = ", ".join(f"{self.units[i]} {self.mean[i]:.3f}" for i in order)
        what = (
            f"{len(self.units)} heads" if all(len(unit) == 1 for unit in self.units) else f"{len(self.units)} head sets"
        )
        what += " of the vision tower" * (self.about.get("part") == VISION)
        return (
            f"HeadEffects: {self.ablation} ablation of {what} in rows {self.rows!r}, {self.metric} lost, "
            f"mean of {self.n_prompts} prompts; largest {best}\n  computed: {self.how}"
            + (f"\n  screened: {self.screen}" if "screen" in self.about else "")
            + (f"\n  {self.problems}" if self.left_out else "")
        )

    def _repr_html_(self) -> str:
        return self.to_pandas().head(10).round(4).to_html(index=False)


def _units_in(about: Mapping[str, Any]) -> tuple[HeadSet, ...]:
    """The head sets that a file tells of."""
    n_layers, n_heads = about["shape"]
    part = about.get("part", DECODER)
    return tuple(HeadSet([tuple(head) for head in unit], n_layers, n_heads, part) for unit in about["units"])
