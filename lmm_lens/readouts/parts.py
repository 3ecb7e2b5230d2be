"""What parts of a model add to an answer: numbers that add up, tables, figures, files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from ..errors import ScoreError
from ..hooks.heads import HeadSet, ranked
from ..runs import files

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

    from ..lens import Lens

KIND = "a direct attribution"
TENSORS = ("values", "difference", "remainder", "chord")
FIELDS = ("by", "spans", "rest", "answers", "model")
UNITS = {"layer": ("layer",), "head": ("layer", "head"), "mlp": ("layer",), "span": ("layer", "head", "span")}
"""What can be attributed to, and the axes of its values behind the batch."""


@dataclass(frozen=True, eq=False)
class DirectAttribution:
    """What each part adds to logit[answer] - logit[against] at the last token, in logits.

    Attributes:
        by: "layer", "head", "mlp" or "span".
        values: Float[batch, layer], [batch, layer, head] or [batch, layer, head, span], fp64; NaN where a layer has no
            such part.
        spans: names of the last axis by span: where the keys are that a head reads.
        rest: name to Float[batch], everything that is not in `values`: the embedding, other parts, biases.
        difference: Float[batch], the model's own logit difference, or logit.
        remainder: Float[batch], it minus all of the above: rounding.
        chord: Float[batch], the factor that stands for a soft cap of the logits; 1 without.
        answers: per batch row, the answer, and what it is taken against.
        model: the model's identity.
    """

    by: str
    values: Float[Tensor, "batch layer *unit"]
    spans: tuple[str, ...]
    rest: Mapping[str, Float[Tensor, " batch"]]
    difference: Float[Tensor, " batch"]
    remainder: Float[Tensor, " batch"]
    chord: Float[Tensor, " batch"]
    answers: tuple[tuple[str, ...], ...]
    model: dict[str, Any] = field(default_factory=dict)

    @property
    def mean(self) -> Float[Tensor, " layer *unit"]:
        """Over batch rows."""
        return self.values.mean(0)

    def by_span(self) -> Float[Tensor, "batch layer span"]:
        """By span, all heads of a layer together.

        Raises:
            ScoreError: the attribution is not by span.
        """
        if self.by != "span":
            raise ScoreError(f"these contributions are by {self.by}: ask for by='span'")
        return self.values.nansum(2)

    def top(self, n: int, layers: Iterable[int] | None = None) -> HeadSet:
        """The n heads that add most, over all batch rows and spans.

        Raises:
            ScoreError: the attribution has no heads, or fewer than that.
        """
        if self.by not in ("head", "span"):
            raise ScoreError(f"top gives heads, but these contributions are by {self.by}")
        return ranked(self.mean if self.by == "head" else self.mean.sum(-1), n, layers, True, "a contribution")

    def to_pandas(self, row: int | None = None) -> pandas.DataFrame:
        """One row a part, largest first, and the rest and the remainder at the end.

        Args:
            row: batch row; the mean over all by default.
        """
        import pandas

        def pick(x: Tensor) -> Tensor:
            return x.mean(0) if row is None else x[row]

        axes, values = UNITS[self.by], pick(self.values)
        places = (~values.isnan()).nonzero().tolist()
        lines: list[dict[str, Any]] = []
        for place in places:
            named = {axis: (self.spans[at] if axis == "span" else at) for axis, at in zip(axes, place, strict=True)}
            lines.append({"part": self._name(place), **named, "contribution": float(values[tuple(place)])})
        lines.sort(key=lambda line: -float(line["contribution"]))
        others = [*self.rest.items(), ("remainder", self.remainder)]
        lines += [{"part": name, "contribution": float(pick(amount))} for name, amount in others]
        whole = {axis: "Int64" for axis in axes if axis != "span"}
        return pandas.DataFrame(lines, columns=["part", *axes, "contribution"]).astype(whole)

    def _name(self, place: list[int]) -> str:
        layer, *more = place
        head = f"H{more[0]}" if more else ""
        span = f" from {self.spans[more[1]]}" if len(more) > 1 else ""
        return f"L{layer}{head}{span}" if more else f"{'MLP' if self.by == 'mlp' else 'L'}{layer}"

    def plot(self, ax: Axes | None = None) -> Axes:
        """Bars by layer, or a heat map of heads or of spans; red adds to the answer, blue takes from it."""
        from .part_figures import contributions

        return contributions(self, ax)

    # ------------------------------------------------------------------ files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file: the numbers, and everything else as JSON in its header."""
        tensors = {name: getattr(self, name) for name in TENSORS}
        tensors |= {f"rest {name}": amount for name, amount in self.rest.items()}
        about = {name: getattr(self, name) for name in FIELDS if name != "rest"}
        files.write(path, KIND, tensors, {**about, "rest": list(self.rest)})

    @classmethod
    def load(cls, path: str | os.PathLike[str], lens: Lens | None = None) -> DirectAttribution:
        """Read one back; `lens`, if given, must be of its model.

        Raises:
            ScoreError: no such file, a truncated, damaged or changed one, one of another kind or another model.
        """
        tensors, about = files.read(path, KIND, None, FIELDS)
        with files.understood(path, KIND):
            if lens is not None:
                files.check_model(path, about["model"], lens.identity)
            axes = {axis: None for axis in UNITS[about["by"]]}
            files.check_numbers(path, "values", tensors["values"], {"batch": len(about["answers"]), **axes})
            return cls(
                by=about["by"],
                values=tensors["values"],
                spans=tuple(about["spans"]),
                rest={name: tensors[f"rest {name}"] for name in about["rest"]},
                difference=tensors["difference"],
                remainder=tensors["remainder"],
                chord=tensors["chord"],
                answers=tuple(tuple(pair) for pair in about["answers"]),
                model=dict(about["model"]),
            )

    def __repr__(self) -> str:
        table = self.to_pandas()
        parts = table[~table["layer"].isna()]
        said = ", ".join(f"{part} {amount:+.2f}" for part, amount in parts[["part", "contribution"]].head(3).values)
        rest = ", ".join(f"{name} {float(amount.mean()):+.2f}" for name, amount in self.rest.items())
        pairs = {" against ".join(map(repr, pair)) for pair in self.answers}
        goal = pairs.pop() if len(pairs) == 1 else f"{len(self.answers)} answers"
        capped = "" if bool((self.chord == 1).all()) else f"; soft cap as a factor of {float(self.chord.mean()):.3f}"
        what = "logit difference" if len(self.answers[0]) > 1 else "logit"
        return (
            f"DirectAttribution of {goal} by {self.by}: {what} {float(self.difference.mean()):+.2f}\n"
            f"  most: {said}\n  rest: {rest}; remainder {float(self.remainder.abs().max()):.1e}{capped}"
        )

    def _repr_html_(self) -> str:
        return self.to_pandas().head(20).round(3).to_html(index=False)
