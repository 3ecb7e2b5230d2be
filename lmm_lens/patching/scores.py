"""Effects of patching, for every layer and unit and pair of prompts: means with intervals, figures, tables, files."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..answers.contrast import Contrast
from ..errors import ScoreError
from ..hooks.heads import DECODER, VISION, HeadSet, ranked
from ..runs import files
from ..statistics.resampling import interval_where_defined

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

    from ..lens import Lens
    from ..prompts.prompt import Prompt

TENSORS = ("per_pair", "clean_ld", "corrupt_ld")
LABELS = ("site", "by", "rows", "method", "layers", "units", "answers", "model")


@dataclass(frozen=True, eq=False)
class PatchScores:
    """How much of the clean answer comes back when one clean activation is put into the corrupt run.

    Attributes:
        site: hook point that was patched.
        by: what was patched at once: "span", "patch" or "head".
        rows: the row scope of heads; empty where spans or patches are the rows themselves.
        method: "patching", the true effect, or "attribution", its first-order estimate.
        layers: layer numbers, the second axis of `per_pair`.
        units: names of the spans, numbers of visual tokens or heads, the third axis.
        per_pair: Float[pair, layer, unit], effects: 0 = as corrupt, 1 = as clean; beyond both where a patch overshoots.
            NaN where the two runs do not differ, where a pair has no such tokens, and where a layer has no such head.
        clean_ld, corrupt_ld: Float[pair], the logit differences of the unpatched runs, in logits.
        answers: (correct, incorrect) token of each pair, as text.
        model: the model's identity.
        how: how the patched forwards were computed; all ways are exact.
        shape: layers and heads of the vision tower, where it was patched; None in the decoder, whose are the model's.
    """

    site: str
    by: str
    rows: str
    method: str
    layers: tuple[int, ...]
    units: tuple[str, ...]
    per_pair: Float[Tensor, "pair layer unit"]
    clean_ld: Float[Tensor, " pair"]
    corrupt_ld: Float[Tensor, " pair"]
    answers: tuple[tuple[str, str], ...]
    model: dict[str, Any] = field(default_factory=dict)
    how: str = ""
    shape: tuple[int, int] | None = None

    @classmethod
    def of_pairs(
        cls, pairs: Contrast, effects: Float[Tensor, "pair layer unit"], layers: Sequence[int], **labels: Any
    ) -> PatchScores:
        """The effects on pairs of runs whose answers and logit differences are known; other fields by name."""
        known: dict[str, Any] = {
            "clean_ld": pairs.clean_ld.float(),
            "corrupt_ld": pairs.corrupt_ld.float(),
            "answers": pairs.texts,
        }
        return cls(per_pair=effects, layers=tuple(layers), **known, **labels)

    @cached_property
    def values(self) -> Float[Tensor, "layer unit"]:
        """The mean over the pairs whose effect is defined."""
        return self.per_pair.nanmean(0)

    @property
    def n_pairs(self) -> int:
        """How many pairs of prompts were run."""
        return self.per_pair.shape[0]

    @property
    def n_undefined(self) -> int:
        """Pairs without any effect, because clean and corrupt have the same logit difference."""
        return int(self.per_pair.isnan().all(-1).all(-1).sum())

    def interval(
        self, level: float = 0.95, resamples: int = 1000, seed: int = 0
    ) -> tuple[Float[Tensor, "layer unit"], Float[Tensor, "layer unit"]]:
        """Bootstrap interval of each mean, low and high, resampling the pairs in which it is defined."""
        if not 0 < level < 1:
            raise ScoreError(f"the level of an interval lies between 0 and 1, given {level}")
        found = interval_where_defined(self.per_pair.flatten(1), level, resamples, seed)
        low, high = (bound.reshape(self.values.shape) for bound in found)
        return low, high

    def top(self, n: int, layers: Iterable[int] | None = None) -> HeadSet:
        """The n heads with the highest effect, best first, among all layers or the given ones.

        Raises:
            ScoreError: the scores are not by head, or there are fewer heads than that.
        """
        if self.by != "head":
            raise ScoreError(f"top gives heads, but these scores are by {self.by}: see to_pandas(), best first")
        own = self.model.get("n_layers", max(self.layers) + 1), self.model.get("n_heads", len(self.units))
        values = torch.full(self.shape or own, torch.nan)
        values[list(self.layers), : len(self.units)] = self.values
        part = DECODER if self.shape is None else VISION
        return ranked(values, n, layers, True, "an effect", part)

    def rank_correlation(self, other: PatchScores) -> float:
        """Spearman's rank correlation of the mean effects with other scores on the same axes, in [-1, 1].

        Ties get their mean rank; NaN if one of the two is constant.

        Raises:
            ScoreError: other layers or other units.
        """
        import pandas

        _check_same([self, other], ("by", "layers", "units"), "a rank correlation needs scores on the same axes")
        table = pandas.DataFrame({"one": self.values.flatten().numpy(), "other": other.values.flatten().numpy()})
        ranks = table.dropna().rank()
        return float(ranks["one"].corr(ranks["other"]))

    @staticmethod
    def concat(scores: Sequence[PatchScores]) -> PatchScores:
        """The scores of several batches of pairs as one.

        Raises:
            ScoreError: no scores, or some that were measured differently.
        """
        if not scores:
            raise ScoreError("no scores were given to concatenate")
        _check_same(scores, [name for name in LABELS if name != "answers"], "only scores of one experiment are joined")
        joined: dict[str, Any] = {name: torch.cat([getattr(score, name) for score in scores]) for name in TENSORS}
        return replace(scores[0], answers=tuple(pair for score in scores for pair in score.answers), **joined)

    # ------------------------------------------------------------------ tables and figures

    def to_pandas(self, level: float = 0.95) -> pandas.DataFrame:
        """One row a layer and unit: layer, unit, effect, low and high of its interval; highest effect first."""
        import pandas

        low, high = self.interval(level)
        rows = [
            (self.layers[i], self.units[j], *(float(x[i, j]) for x in (self.values, low, high)))
            for i, j in (~self.values.isnan()).nonzero().tolist()
        ]
        table = pandas.DataFrame(rows, columns=["layer", self.by, "effect", "low", "high"])
        if self.by != "span" and all(unit.isdigit() for unit in self.units):  # not "tile:token" of a tower
            table[self.by] = table[self.by].astype(int)
        return table.sort_values("effect", ascending=False, ignore_index=True, kind="stable")

    def plot(self, ax: Axes | None = None, *, tower: PatchScores | None = None) -> Axes:
        """A layer x unit heat map, white at no effect.

        Args:
            ax: where to draw; a new figure by default.
            tower: to effects in the decoder by span, those in the vision tower on the same pairs, drawn above: the
                whole path, from the first layer that sees pixels to the answer. Units that a part has not are grey.

        Raises:
            ScoreError: the two are not such a pair.
        """
        from .figures import effect_heatmap

        return effect_heatmap(self, ax, tower)

    def plot_over_image(self, prompt: Prompt, layer: int, row: int = 0, image: int = 0, ax: Axes | None = None) -> Axes:
        """The effect of each patch of one layer, drawn over the picture where it lies.

        Args:
            prompt: the clean or the corrupt prompt that was scored; its picture is shown.
            layer, row, image: which layer, which pair, which picture of that pair.
            ax: where to draw; a new figure by default.

        Raises:
            ScoreError: the scores are not by patch, have no such layer, or belong to another prompt.
            PromptError: there is no such picture, or its layout is unknown.
        """
        from .figures import effect_over_image

        return effect_over_image(self, prompt, layer, row, image, ax)

    # ------------------------------------------------------------------ files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file: the numbers, and everything else as JSON in its header."""
        tensors = {name: getattr(self, name) for name in TENSORS}
        labels = {name: getattr(self, name) for name in (*LABELS, "shape")}
        files.write(path, "patch scores", tensors, labels)

    @classmethod
    def load(cls, path: str | os.PathLike[str], lens: Lens | None = None) -> PatchScores:
        """Read scores back.

        Args:
            path: a file written by `save`.
            lens: if given, the scores must be of its model.

        Raises:
            ScoreError: no such file, a truncated, damaged or changed one, one of another kind, or scores of another
                model.
        """
        tensors, about = files.read(path, "patch scores", TENSORS, LABELS)
        with files.understood(path, "patch scores"):
            labels: dict[str, Any] = {name: about[name] for name in LABELS}
            for name in ("layers", "units"):
                labels[name] = tuple(labels[name])
            labels["answers"] = tuple((correct, incorrect) for correct, incorrect in labels["answers"])
            labels["model"] = dict(labels["model"])
            labels["shape"] = tuple(about["shape"]) if about.get("shape") else None
            pairs = {"pair": len(labels["answers"])}
            shape = {**pairs, "layer": len(labels["layers"]), "unit": len(labels["units"])}
            files.check_numbers(path, "per_pair", tensors["per_pair"], shape)
            for name in TENSORS[1:]:
                files.check_numbers(path, name, tensors[name], pairs)
            if lens is not None:
                files.check_model(path, labels["model"], lens.identity)
            return cls(**labels | tensors)

    def __repr__(self) -> str:
        scope = f" at rows {self.rows!r}" if self.rows else ""
        places = sorted((~self.values.isnan()).nonzero().tolist(), key=lambda place: -float(self.values[tuple(place)]))
        joint = {"head": "H", "patch": " patch ", "span": " "}[self.by]
        best = [f"L{self.layers[i]}{joint}{self.units[j]} {self.values[i, j]:.2f}" for i, j in places[:3]]
        undefined = f" ({self.n_undefined} of them undefined)" if self.n_undefined else ""
        return (
            f"PatchScores: {self.method} of {self.site} by {self.by}{scope}, {len(self.layers)} layers x "
            f"{len(self.units)}, mean of {self.n_pairs} pairs{undefined}; logit difference {self.clean_ld.mean():+.2f} "
            f"clean, {self.corrupt_ld.mean():+.2f} corrupt; highest {', '.join(best) or 'none'}"
        )

    def _repr_html_(self) -> str:
        import pandas

        if self.by != "span":
            return self.to_pandas().head(10).to_html(index=False, float_format="{:.3f}".format)
        index = pandas.Index(self.layers, name="layer")
        return pandas.DataFrame(self.values.numpy(), index, list(self.units)).to_html(float_format="{:.2f}".format)


def _check_same(scores: Sequence[PatchScores], names: Sequence[str], what: str) -> None:
    for name in names:
        for score in scores[1:]:
            mine, others = getattr(scores[0], name), getattr(score, name)
            if mine != others:
                raise ScoreError(f"{what}, these differ in {name}: {reprlib.repr(mine)} and {reprlib.repr(others)}")
