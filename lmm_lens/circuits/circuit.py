"""A circuit: edges of a model with their scores, best first, of which so many are kept."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import ScoreError
from ..hooks.heads import VISION, HeadSet
from ..runs import files
from ..runs.checkpoint import digest
from .graph import HEAD, Graph, K, Q, V
from .joint_graph import IN_TOWER, JointGraph, graph_from_dict

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

    from ..lens import Lens
    from .faithfulness import Faithfulness
    from .find import Answers, Prompts

KIND = "circuit"
AVERAGES = ("signed", "absolute")
TENSORS = ("scores", "sizes", "clean_ld", "corrupt_ld", "marks")
LABELS = ("method", "average", "n_kept", "answers", "model")


@dataclass(frozen=True, eq=False)
class Circuit:
    """Edges with their scores, of which the best are kept.

    Attributes:
        graph: all nodes, entries and edges there are.
        method: how they were scored.
        average: by what they are ranked: "signed", the size of `scores`, or "absolute", `sizes`.
        scores: Float[edge], in logits: what the logit difference loses on average without the edge; positive where it
            helps the answer.
        sizes: Float[edge], the mean over pairs of the score's size.
        n_kept: how many of the best edges the circuit has.
        clean_ld, corrupt_ld: Float[pair], the logit differences of both runs.
        answers: (answer, against) of each pair, as text.
        marks: Float[pair, number], by which the prompts are known again.
        model: the model's identity.
    """

    graph: Graph | JointGraph
    method: str
    average: str
    scores: Float[Tensor, " edge"]
    sizes: Float[Tensor, " edge"]
    n_kept: int
    clean_ld: Float[Tensor, " pair"]
    corrupt_ld: Float[Tensor, " pair"]
    answers: tuple[tuple[str, str], ...]
    marks: Float[Tensor, "pair number"]
    model: dict[str, Any] = field(default_factory=dict)

    @property
    def n_edges(self) -> int:
        """How many edges the whole model has."""
        return len(self.scores)

    @cached_property
    def order(self) -> Int[Tensor, " edge"]:
        """The numbers of all edges, best first."""
        ranked = self.scores.abs() if self.average == "signed" else self.sizes
        return ranked.argsort(descending=True, stable=True)

    @property
    def mark(self) -> str:
        """16 hex digits of the order of its edges, by which a curve knows whose it is."""
        return digest(self.order)

    @property
    def kept(self) -> Int[Tensor, " kept"]:
        """The numbers of the edges that the circuit has, best first."""
        return self.order[: self.n_kept]

    def mask(self, n: int | None = None) -> Bool[Tensor, "node entry span"]:
        """Which edges the circuit has; or the n best."""
        return mask_of(self.graph, self.order[: self.n_kept if n is None else n])

    def top(self, n: int) -> Circuit:
        """The circuit of the n best edges.

        Raises:
            ScoreError: there are fewer.
        """
        if not 0 < n <= self.n_edges:
            raise ScoreError(f"{n} edges were asked for, expected 1 to {self.n_edges}")
        return replace(self, n_kept=n)

    @property
    def heads(self) -> HeadSet:
        """The heads that the circuit reads into or out of, best first: those of a group for its k and v."""
        found: list[tuple[int, int]] = []
        for node_index, entry_index, _ in self.graph.edges[self.kept].tolist():
            node, entry = self.graph.nodes[node_index], self.graph.entries[entry_index]
            if node.kind == HEAD:
                found.append((node.layer, node.head))
            if entry.kind in (Q, K, V):
                n, kv = self.graph.n_heads[entry.layer], self.graph.n_kv[entry.layer]
                group = 1 if entry.kind == Q else n // kv
                found += [(entry.layer, head) for head in range(entry.head * group, (entry.head + 1) * group)]
        return HeadSet(found, self.graph.n_layers, max(self.graph.n_heads))

    @property
    def tower_heads(self) -> HeadSet:
        """The heads of the vision tower that the circuit reads into or out of, best first.

        Raises:
            ScoreError: its edges begin in the decoder.
        """
        if not isinstance(self.graph, JointGraph):
            raise ScoreError("this circuit begins in the decoder: find_circuit(..., tower=True) begins in the tower")
        found: list[tuple[int, int]] = []
        for node_index, entry_index, _ in self.graph.edges[self.kept].tolist():
            for part in (self.graph.nodes[node_index], self.graph.entries[entry_index]):
                if part.kind.removeprefix(IN_TOWER) in (HEAD, Q, K, V) and part.kind.startswith(IN_TOWER):
                    found.append((part.layer, part.head))
        return HeadSet(found, self.graph.tower.n_layers, max(self.graph.tower.n_heads), VISION)

    # ------------------------------------------------------------------ how good it is

    def faithfulness(
        self,
        lens: Lens,
        clean: Prompts,
        corrupt: Prompts,
        *,
        answer: Answers = None,
        against: Answers = None,
        sizes: Sequence[int] | None = None,
        n_random: int = 3,
        seed: int = 0,
        progress: bool = False,
    ) -> Faithfulness:
        """How much of the answer the best edges alone carry, every other edge with what its node wrote corrupt.

        Args:
            lens: the model.
            clean, corrupt, answer, against: pairs as in `find_circuit`, best not those it was found on.
            sizes: numbers of edges; by default .1, .2, .5, 1, 2, 5, 10, 20, 50 and 100% of the model's.
            n_random: random circuits of each size, with as many edges between the same layers at the same spans.
            seed: of their draw.
            progress: show a progress bar.

        Raises:
            ScoreError: as `find_circuit`; prompts with other spans than the circuit's; on the mean of all pairs clean
                and corrupt do not differ.
        """
        from .measure import measure

        return measure(self, lens, clean, corrupt, answer, against, sizes, n_random, seed, progress)

    def smallest(self, curve: Faithfulness | None = None, keep: float = 0.9) -> Circuit:
        """The smallest measured circuit that is at least so faithful.

            curve = circuit.faithfulness(lens, clean, corrupt, ...)  # pairs that it was not found on
            small = circuit.smallest(curve, keep=0.9)

        Args:
            curve: of this circuit's `faithfulness`, with more `sizes` for a finer answer. There is no default: scores
                of single edges do not say what they do together, and on which pairs to measure it is yours to choose.
            keep: which faithfulness, 1 for all of the model's answer.

        Raises:
            ScoreError: no curve, one of another circuit, or none of the measured sizes is so faithful.
        """
        from .measure import curve_of

        return self.top(curve_of(self, curve, keep).smallest(keep))

    def rank_correlation(self, other: Circuit) -> float:
        """Spearman's rank correlation of the scores with those of another circuit on the same edges, in [-1, 1].

        Edges that are 0 in both, as those at tokens before the picture, tell nothing and are left out.

        Raises:
            ScoreError: they have other edges.
        """
        import pandas

        if other.graph != self.graph:
            raise ScoreError("a rank correlation needs circuits on the same edges, these have other layers or spans")
        table = pandas.DataFrame({"one": self.scores.numpy(), "other": other.scores.numpy()})
        ranks = table[(table != 0).any(axis=1)].rank()
        return float(ranks["one"].corr(ranks["other"]))

    # ------------------------------------------------------------------ tables, figures, files

    def to_pandas(self) -> pandas.DataFrame:
        """One row an edge of the circuit, best first: node, entry, span, score in logits, size."""
        import pandas

        kept = self.kept.tolist()
        names = pandas.DataFrame([self.graph.named(edge) for edge in kept], columns=["node", "entry", "span"])
        return names.assign(score=self.scores[kept].numpy(), size=self.sizes[kept].numpy())

    def plot(self, ax: Axes | None = None, n: int = 60) -> Axes:
        """The circuit as a graph: layers up, a lane a span, edges as wide as their score, red where they help.

        Args:
            ax: where; a new figure by default.
            n: of the circuit's edges, how many of the best are looked at; those not on a way to the answer are left
                out.
        """
        from .figures import circuit_graph

        return circuit_graph(self, ax, n)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file: the numbers, and everything else as JSON in its header."""
        about = {name: getattr(self, name) for name in LABELS}
        files.write(
            path, KIND, {name: getattr(self, name) for name in TENSORS}, {**about, "graph": self.graph.to_dict()}
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str], lens: Lens | None = None) -> Circuit:
        """Read a circuit back; with a lens, it must be of its model.

        Raises:
            ScoreError: no such file, a truncated, damaged or changed one, one of another kind, or of another model.
        """
        tensors, about = files.read(path, KIND, TENSORS, (*LABELS, "graph"))
        with files.understood(path, KIND):
            graph = graph_from_dict(about["graph"])
            labels: dict[str, Any] = {name: about[name] for name in LABELS}
            labels["answers"] = tuple((answer, against) for answer, against in labels["answers"])
            labels["model"] = dict(labels["model"])
            edges, pairs = {"edge": len(graph.edges)}, {"pair": len(labels["answers"])}
            for name in ("scores", "sizes"):
                files.check_numbers(path, name, tensors[name], edges)
            for name in ("clean_ld", "corrupt_ld"):
                files.check_numbers(path, name, tensors[name], pairs)
            files.check_numbers(path, "marks", tensors["marks"], {**pairs, "number": None})
            if not 0 < int(labels["n_kept"]) <= len(graph.edges) or labels["average"] not in AVERAGES:
                raise ValueError(f"{labels['n_kept']} edges kept of {len(graph.edges)}")
            if lens is not None:
                files.check_model(path, labels["model"], lens.identity)
            return cls(graph=graph, **labels | tensors)

    def __repr__(self) -> str:
        named = [(*self.graph.named(edge), float(self.scores[edge])) for edge in self.kept[:3].tolist()]
        best = ", ".join(f"{node} to {entry} at {span} {score:+.2f}" for node, entry, span, score in named)
        return (
            f"Circuit by {self.method}: {self.n_kept:,} of {self.n_edges:,} edges between {len(self.graph.nodes)} "
            f"nodes and {len(self.graph.entries)} entries at {len(self.graph.spans)} spans, mean of "
            f"{len(self.answers)} pairs; logit difference {self.clean_ld.mean():+.2f} clean, "
            f"{self.corrupt_ld.mean():+.2f} corrupt; strongest {best}"
        )

    def _repr_html_(self) -> str:
        return replace(self, n_kept=min(10, self.n_kept)).to_pandas().to_html(index=False, float_format="{:.3f}".format)


def mask_of(graph: Graph | JointGraph, edges: Int[Tensor, " n"]) -> Bool[Tensor, "node entry span"]:
    """Some edges, by number, as a mask."""
    found = torch.zeros_like(graph.exists)
    node, entry, span = graph.edges[edges].T
    found[node, entry, span] = True
    return found
