"""Scores of all heads over many prompts: means with intervals, rankings, tables, files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from ..hooks.heads import DECODER, HeadSet, ranked
from ..runs import files
from ..statistics.resampling import bootstrap_interval
from .metrics import HEAD_METRICS, head_metric

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

    from ..lens import Lens

KIND = "head scores"


@dataclass(frozen=True, eq=False)
class HeadScores:
    """One number a head and prompt.

    Attributes:
        metric: what was measured; `HEAD_METRICS` has its meaning and source, `settings["own_metric"]` that of an own.
        query: which query row: "last" or "answer".
        per_prompt: Float[prompt, layer, head]; NaN in layers without heads.
        model: the model's identity.
        settings: what else the numbers depend on, such as the sink dimensions.
    """

    metric: str
    query: str
    per_prompt: Float[Tensor, "prompt layer head"]
    model: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def values(self) -> Float[Tensor, "layer head"]:
        """The mean over prompts."""
        return self.per_prompt.mean(0)

    @property
    def n_prompts(self) -> int:
        """How many prompts were scored."""
        return self.per_prompt.shape[0]

    def interval(
        self, level: float = 0.95, resamples: int = 1000, seed: int = 0
    ) -> tuple[Float[Tensor, "layer head"], Float[Tensor, "layer head"]]:
        """Bootstrap interval of each mean, low and high, resampling prompts."""
        return bootstrap_interval(self.per_prompt, level, resamples, seed)

    @property
    def higher_is_better(self) -> bool:
        """Whether a large score is what one looks for; not so for entropies."""
        if self.metric in HEAD_METRICS:
            return HEAD_METRICS[self.metric].higher_is_better
        return bool(self.settings.get("own_metric", {}).get("higher_is_better", True))

    @property
    def unit(self) -> str:
        """What the numbers are, for axes."""
        if self.metric in HEAD_METRICS:
            return HEAD_METRICS[self.metric].unit
        return str(self.settings.get("own_metric", {}).get("unit", self.metric))

    def top(self, n: int, layers: Iterable[int] | None = None) -> HeadSet:
        """The n best heads, best first, among all layers or the given ones: the highest, or lowest for entropies.

        What a head of layer 0 gives the picture is often no looking: where it attends evenly, the picture gets the
        share that it has of the tokens. `layers=range(1, lens.n_layers)` leaves these out.

        Raises:
            ScoreError: there are fewer heads than that.
        """
        return self._ranked(n, layers, descending=self.higher_is_better)

    def bottom(self, n: int, layers: Iterable[int] | None = None) -> HeadSet:
        """The n worst heads, worst first."""
        return self._ranked(n, layers, descending=not self.higher_is_better)

    def _ranked(self, n: int, layers: Iterable[int] | None, descending: bool) -> HeadSet:
        return ranked(self.values, n, layers, descending, "a score", self.settings.get("part", DECODER))

    def to_pandas(self, level: float = 0.95) -> pandas.DataFrame:
        """One row a head: layer, head, mean, low and high of its interval, best first."""
        import pandas

        low, high = self.interval(level)
        rows = [
            (layer, head, *(float(x[layer, head]) for x in (self.values, low, high)))
            for layer, head in (~self.values.isnan()).nonzero().tolist()
        ]
        table = pandas.DataFrame(rows, columns=["layer", "head", self.metric, "low", "high"])
        return table.sort_values(self.metric, ascending=not self.higher_is_better, ignore_index=True)

    def plot(self, ax: Axes | None = None) -> Axes:
        """A layer x head heat map."""
        from .figures import head_heatmap

        return head_heatmap(self, ax)

    # ------------------------------------------------------------------ files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file: the numbers, and everything else as JSON in its header."""
        about = {"metric": self.metric, "query": self.query, "model": self.model, "settings": self.settings}
        files.write(path, KIND, {"per_prompt": self.per_prompt}, about)

    @classmethod
    def load(cls, path: str | os.PathLike[str], lens: Lens | None = None) -> HeadScores:
        """Read scores back.

        Args:
            path: a file written by `save`.
            lens: if given, the scores must be of its model.

        Raises:
            ScoreError: no such file, a truncated, damaged or changed one, one of another kind, or scores of another
                model.
        """
        tensors, about = files.read(path, KIND, ("per_prompt",), ("metric", "query", "model", "settings"))
        with files.understood(path, KIND):
            model, per_prompt = dict(about["model"]), tensors["per_prompt"]
            if lens is not None:
                files.check_model(path, model, lens.identity)
            n_layers, n_heads = about["settings"].get("shape", (model.get("n_layers"), model.get("n_heads")))
            shape = {"prompt": None, "layer": n_layers, "head": n_heads}
            files.check_numbers(path, "per_prompt", per_prompt, shape)
            if "own_metric" not in about["settings"]:
                head_metric(about["metric"])
            return cls(about["metric"], about["query"], per_prompt, model, dict(about["settings"]))

    def __repr__(self) -> str:
        n_layers, n_heads = self.values.shape
        n_scored = int((~self.values.isnan()).sum())
        heads = self.top(min(3, n_scored)) if n_scored else ()
        best = ", ".join(f"L{layer}H{head} {self.values[layer, head]:.3f}" for layer, head in heads) or "none"
        return (
            f"HeadScores: {self.metric} of {n_layers} layers x {n_heads} heads at query {self.query!r}, "
            f"mean of {self.n_prompts} prompts; {'highest' if self.higher_is_better else 'lowest'} {best}"
        )

    def _repr_html_(self) -> str:
        return self.to_pandas().head(10).round(3).to_html(index=False)
