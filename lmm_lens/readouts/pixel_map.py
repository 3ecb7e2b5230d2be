"""Pixel attributions: the numbers, where they lie, tables, figures, files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..figures.canvas import Canvas, check_boards
from ..runs import files
from .canvas_files import canvases_about, canvases_in, pixels_of
from .pixel_grid import pixel_grid
from .pixel_places import NOWHERE

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from ..lens import Lens

KIND = "a pixel attribution"
FIELDS = ("method", "names", "canvases", "answers", "ids", "score", "baseline_score", "steps", "model")
UNITS = {
    "gradient": "sum of |gradient|, logits per unit of a processed pixel",
    "integrated_gradients": "integrated gradients (logits)",
}


@dataclass(frozen=True, eq=False)
class PixelAttribution:
    """What each pixel that a model takes adds to an answer, or how it would move it.

    Attributes:
        method: "integrated_gradients" or "gradient".
        values: by the input's name, like the input itself: logits, or logits per unit of a processed pixel.
        places: likewise, the position of the visual token that each pixel is of; -1 for padding, and for pixels that
            several tokens share.
        weights: Float[position], of each token's pixels: the sum; of a gradient, the sum of absolute values.
        canvases: the pictures and frames that the model sees, with their visual tokens.
        answers: the answer, and what it is taken against; or the name of a metric.
        ids: the answers' token ids; none for a metric.
        score: the logit, difference or metric that is explained.
        baseline_score: the same of the baseline; None for a gradient.
        steps: of the path.
        model: the model's identity.
    """

    method: str
    values: Mapping[str, Float[Tensor, " *pixel"]]
    places: Mapping[str, Int[Tensor, " *pixel"]]
    weights: Float[Tensor, " position"]
    canvases: tuple[Canvas, ...]
    answers: tuple[str, ...]
    ids: tuple[int, ...]
    score: float
    baseline_score: float | None
    steps: int
    model: dict[str, Any] = field(default_factory=dict)

    @property
    def elsewhere(self) -> float:
        """What is on pixels of no one token: padding, and pixels that several tokens share."""
        found = [value[self.places[name] == NOWHERE].double() for name, value in self.values.items()]
        return float(sum((each.abs() if self.method == "gradient" else each).sum() for each in found))

    @property
    def missing(self) -> float | None:
        """What integrated gradients lack to add up, in logits: the path has few steps; None for a gradient."""
        if self.baseline_score is None:
            return None
        return self.score - self.baseline_score - float(sum(each.double().sum() for each in self.values.values()))

    def grid(self, canvas: Canvas) -> list[Float[Tensor, "row column"]]:
        """The numbers of a canvas, colours added up, as fine as is known: one grid for each of its spans.

        A number for each processed pixel where the input holds pictures as they lie; where it holds patches in an order
        of their own, as Qwen's does, one for each visual token.
        """
        return [pixel_grid(span, self.values, self.places, self.weights, self.method) for span in canvas.spans]

    def to_pandas(self) -> pandas.DataFrame:
        """One row a visual token, largest first: where its patch lies in its picture, and what its pixels add."""
        import pandas

        rows = [
            (canvas.name, position, *canvas.box(position), float(self.weights[position]))
            for canvas in self.canvases
            for position in canvas.positions
        ]
        table = pandas.DataFrame(rows, columns=["picture", "position", "x0", "y0", "x1", "y1", "attribution"])
        return table.sort_values("attribution", ascending=False, ignore_index=True)

    def plot(self, by: str = "patch", high: float | None = None) -> Figure:
        """The numbers over each picture; red adds to the answer and blue takes from it, a gradient has sizes alone.

        Args:
            by: "patch", the sum of each visual token, or "pixel", as fine as is known.
            high: the number of the strongest colour; by default the largest, of pixels the 99th percentile.

        Returns:
            matplotlib's figure; `.savefig("map.pdf")` writes it.

        Raises:
            PromptError: it is not known where the visual tokens lie.
        """
        from .pixel_figures import over_pictures

        check_boards(self.canvases, 0)
        return over_pictures(self, by, high)

    # ------------------------------------------------------------------ files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file: numbers and pictures, and everything else as JSON in its header."""
        tensors = {"weights": self.weights, **pixels_of(self.canvases)}
        for name in self.values:
            tensors |= {f"values {name}": self.values[name], f"places {name}": self.places[name]}
        about = {name: getattr(self, name) for name in FIELDS if name not in ("names", "canvases")}
        files.write(
            path, KIND, tensors, about | {"names": list(self.values), "canvases": canvases_about(self.canvases)}
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str], lens: Lens | None = None) -> PixelAttribution:
        """Read one back; `lens`, if given, must be of its model.

        Raises:
            ScoreError: no such file, a truncated, damaged or changed one, one of another kind or another model.
        """
        tensors, about = files.read(path, KIND, None, FIELDS)
        with files.understood(path, KIND):
            if lens is not None:
                files.check_model(path, about["model"], lens.identity)
            files.check_numbers(path, "weights", tensors["weights"], {"position": None})
            return cls(
                method=about["method"],
                values={name: tensors[f"values {name}"] for name in about["names"]},
                places={name: tensors[f"places {name}"] for name in about["names"]},
                weights=tensors["weights"],
                canvases=canvases_in(about["canvases"], tensors),
                answers=tuple(about["answers"]),
                ids=tuple(about["ids"]),
                score=about["score"],
                baseline_score=about["baseline_score"],
                steps=about["steps"],
                model=dict(about["model"]),
            )

    def __repr__(self) -> str:
        goal = " against ".join(map(repr, self.answers))
        if self.baseline_score is None or self.missing is None:
            how = f"gradient of {goal}, {self.score:+.2f}"
        else:
            how = (
                f"integrated gradients of {goal}, {self.score:+.2f} with the picture and {self.baseline_score:+.2f} "
                f"with the baseline, {self.steps} steps, {self.missing:+.2g} missing"
            )
        lines = [f"PixelAttribution: {how}"]
        for canvas in self.canvases:
            best = max(canvas.positions, key=lambda at: float(self.weights[at]))
            box = ", ".join(f"{side:g}" for side in canvas.box(best))
            whole = float(self.weights[list(canvas.positions)].sum())
            most = float(self.weights[best])
            lines.append(f"  {canvas.name}: {whole:+.2f}, most ({most:+.2f}) on ({box})")
        known = torch.cat([(each != NOWHERE).flatten() for each in self.places.values()])
        if not self.canvases or not bool(known.all()):
            lines.append(f"  on pixels of no one token: {self.elsewhere:+.2f}")
        return "\n".join(lines)

    def _repr_png_(self) -> bytes:
        shown: bytes = vars(self.plot())["_repr_png_"]()
        return shown
