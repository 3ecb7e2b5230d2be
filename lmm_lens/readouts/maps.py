"""Attention maps: the weights, where they lie, tables, figures, files."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from ..errors import ScoreError
from ..figures.canvas import Canvas
from ..hooks.heads import DECODER, VISION, HeadSet
from ..runs import files
from .canvas_files import canvases_about, canvases_in, pixels_of

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from ..lens import Lens

KIND = "an attention map"
FIELDS = ("queries", "heads", "shape", "reduce", "canvases", "model")
UNIT = "attention from the query (share of its row)"


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """How much of the attention of some queries each visual token gets.

    Attributes:
        queries: whose attention, a name each: words, a scope, generated tokens.
        heads: the heads it was read of.
        reduce: "mean" or "max" over them; None for a map of each, in the order of `heads`.
        weights: Float[query, panel, position], panel being one or a head each: the share of the row that each token of
            the prompt gets, 0 to 1. Sinks that were left out have 0.
        on_sinks: Float[query, panel], what the sinks held that were left out; None where none were.
        canvases: the pictures and frames that the model sees, with their visual tokens.
        model: the model's identity.
    """

    queries: tuple[str, ...]
    heads: HeadSet
    reduce: str | None
    weights: Float[Tensor, "query panel position"]
    on_sinks: Float[Tensor, "query panel"] | None
    canvases: tuple[Canvas, ...]
    model: dict[str, Any] = field(default_factory=dict)

    @property
    def panels(self) -> tuple[str, ...]:
        """What each panel is of, in words."""
        if self.reduce is None:
            return tuple(f"L{layer}H{head}" for layer, head in self.heads)
        if len(self.heads) == 1:
            return (str(self.heads),)
        return (f"{self.reduce} of {len(self.heads)} heads",)

    @property
    def on_pictures(self) -> Float[Tensor, "query panel"]:
        """The share of each row that lies on the pictures, each visual token counted once."""
        drawn = sorted({position for canvas in self.canvases for position in canvas.positions})
        return self.weights[:, :, drawn].sum(-1)

    def to_pandas(self) -> pandas.DataFrame:
        """One row a query, panel and visual token: where its patch lies in its picture, and its attention."""
        import pandas

        rows = [
            (query, panel, canvas.name, position, *canvas.box(position), float(self.weights[q, p, position]))
            for q, query in enumerate(self.queries)
            for p, panel in enumerate(self.panels)
            for canvas in self.canvases
            for position in canvas.positions
        ]
        return pandas.DataFrame(
            rows, columns=["query", "heads", "picture", "position", "x0", "y0", "x1", "y1", "attention"]
        )

    def plot(self, high: float | None = None) -> Figure:
        """A figure: a picture for each query, each head where they are apart, and each picture of the prompt.

        Args:
            high: the attention of the brightest colour; by default the largest of the figure.

        Returns:
            matplotlib's figure; `.savefig("map.pdf")` writes it.
        """
        from ..figures.panels import Panel, figure_of_panels

        many = len(self.queries) * len(self.panels) > 1
        panels = [
            Panel(self._title(q, p, canvas), canvas, self.weights[q, p])
            for q in range(len(self.queries))
            for p in range(len(self.panels))
            for canvas in self.canvases
        ]
        columns = len(self.canvases) if many and len(self.canvases) > 1 else None
        return figure_of_panels(panels, UNIT, columns, high=high)

    def _title(self, query: int, panel: int, canvas: Canvas) -> str:
        share = float(self.weights[query, panel, list(canvas.positions)].sum())
        name = f"\n{canvas.name}" if len(self.canvases) > 1 else ""
        said = "" if self.reduce == "max" else f": {share:.0%} on it"
        return f"{self.queries[query]!r}, {self.panels[panel]}{name}{said}"

    # ------------------------------------------------------------------ files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file: numbers and pictures, and everything else as JSON in its header."""
        tensors = {"weights": self.weights, **pixels_of(self.canvases)}
        if self.on_sinks is not None:
            tensors["on_sinks"] = self.on_sinks
        about = {
            "queries": self.queries,
            "heads": list(self.heads),
            "shape": [self.heads.n_layers, self.heads.n_heads],
            "part": self.heads.part,
            "reduce": self.reduce,
            "canvases": canvases_about(self.canvases),
            "model": self.model,
        }
        files.write(path, KIND, tensors, about)

    @classmethod
    def load(cls, path: str | os.PathLike[str], lens: Lens | None = None) -> AttentionMap:
        """Read a map back.

        Args:
            path: a file written by `save`.
            lens: if given, the map must be of its model.

        Raises:
            ScoreError: no such file, a truncated, damaged or changed one, one of another kind or another model.
        """
        tensors, about = files.read(path, KIND, None, FIELDS)
        with files.understood(path, KIND):
            if lens is not None:
                files.check_model(path, about["model"], lens.identity)
            pairs = [tuple(head) for head in about["heads"]]
            n_layers, n_heads = about["shape"]
            heads = HeadSet(pairs, n_layers, n_heads, about.get("part", DECODER))
            panels = len(heads) if about["reduce"] is None else 1
            shape = {"query": len(about["queries"]), "panel": panels, "position": None}
            files.check_numbers(path, "weights", tensors["weights"], shape)
            canvases = canvases_in(about["canvases"], tensors)
            if max(p for canvas in canvases for p in canvas.positions) >= tensors["weights"].shape[2]:
                raise ScoreError(f"{str(path)!r} holds a map of fewer tokens than its pictures have")
            return cls(
                tuple(about["queries"]),
                heads,
                about["reduce"],
                tensors["weights"],
                tensors.get("on_sinks"),
                canvases,
                dict(about["model"]),
            )

    def __repr__(self) -> str:
        lines = []
        for q, query in enumerate(self.queries):
            best, p = max(
                (float(self.weights[q, p, list(canvas.positions)].max()), p)
                for p in range(len(self.panels))
                for canvas in self.canvases
            )
            canvas = max(self.canvases, key=lambda each: float(self.weights[q, p, list(each.positions)].max()))
            position = max(canvas.positions, key=lambda at: float(self.weights[q, p, at]))
            box = ", ".join(f"{side:g}" for side in canvas.box(position))
            sinks = "" if self.on_sinks is None else f", {float(self.on_sinks[q].mean()):.2f} on sinks left out"
            lines.append(
                f"{query!r}: {float(self.on_pictures[q].mean()):.2f} on {_counted(self.canvases)}{sinks}, most "
                f"({best:.3f}) on ({box}) of {canvas.name}"
            )
        heads = f"{len(self.heads)} heads" if self.reduce is None else self.panels[0]
        tower = " of the vision tower" if self.heads.part == VISION else ""
        return f"AttentionMap by {heads}{tower}\n  " + "\n  ".join(lines)

    def _repr_png_(self) -> bytes:
        shown: bytes = vars(self.plot())["_repr_png_"]()
        return shown


def _counted(canvases: tuple[Canvas, ...]) -> str:
    return canvases[0].name if len(canvases) == 1 else f"{len(canvases)} pictures"
