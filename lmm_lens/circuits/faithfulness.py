"""How faithful a circuit is (Hanna et al., arXiv:2403.17806; MIB, arXiv:2504.13151).

    f(n) = (m(n best edges) - m(none)) / (m(all) - m(none))        m the mean logit difference

Every edge that is not kept carries what its node wrote in the corrupt run, in a real forward: f(0) = 0, f(all) = 1.
Two areas over the share of edges kept, from 0 to 1, by the trapezoid rule: CPR, under f, is large where few edges carry
much; CMD, under |1 - f|, is small where the circuit does what the model does, no more and no less. A random circuit has
as many edges between each two layers at each span: its curve is what the choice of edges has to beat.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import ScoreError
from ..patching.task import shown_progress
from ..runs import files
from ..statistics.resampling import percentiles
from ..warnings import warn
from .circuit import Circuit, mask_of
from .graph import Graph
from .pair import Pair
from .patched import PatchedForwards

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

    from ..lens import Lens
    from .find import Answers, Prompts

KIND = "faithfulness"
PERCENT = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
TENSORS = ("sizes", "per_pair", "random", "clean_ld", "corrupt_ld")
LABELS = ("n_edges", "method", "n_known")


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """The curve of a circuit, and of random ones beside it.

    Attributes:
        sizes: Int[size], numbers of edges kept.
        per_pair: Float[size, pair], the logit difference with so many of the best edges kept.
        random: Float[draw, size, pair], the same with random edges.
        clean_ld, corrupt_ld: Float[pair], with all edges and with none.
        n_edges: how many edges the model has.
        method: how the circuit was found.
        n_known: how many of these pairs it was found on.
    """

    sizes: Int[Tensor, " size"]
    per_pair: Float[Tensor, "size pair"]
    random: Float[Tensor, "draw size pair"]
    clean_ld: Float[Tensor, " pair"]
    corrupt_ld: Float[Tensor, " pair"]
    n_edges: int
    method: str
    n_known: int

    @property
    def values(self) -> Float[Tensor, " size"]:
        """f at each size: 0 as corrupt, 1 as clean."""
        return self._of(self.per_pair.mean(-1))

    @property
    def random_values(self) -> Float[Tensor, "draw size"]:
        """The same of each random circuit."""
        return self._of(self.random.mean(-1))

    def _of(self, mean: Tensor) -> Tensor:
        clean, corrupt = self.clean_ld.mean(), self.corrupt_ld.mean()
        return (mean - corrupt) / (clean - corrupt)

    def interval(self, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Bootstrap interval of f over pairs, low and high, Float[size]."""
        if not 0 < level < 1:
            raise ScoreError(f"the level of an interval lies between 0 and 1, given {level}")
        n = len(self.clean_ld)
        drawn = torch.randint(n, (resamples, n), generator=torch.Generator().manual_seed(seed))
        clean, corrupt = (x[drawn].mean(1) for x in (self.clean_ld, self.corrupt_ld))
        found = (self.per_pair[:, drawn].mean(2) - corrupt) / (clean - corrupt)
        low, high = percentiles(found.T, level)
        return low, high

    @property
    def cpr(self) -> float:
        """The area under f over the share of edges kept."""
        return float(self._area(self.values))

    @property
    def cmd(self) -> float:
        """The area under |1 - f| over the share of edges kept; 0 for a circuit as good as the model at any size."""
        return float(self._area((1 - self.values).abs(), at_none=1.0))

    @property
    def random_cpr(self) -> Float[Tensor, " draw"]:
        """CPR of each random circuit."""
        return self._area(self.random_values)

    @property
    def random_cmd(self) -> Float[Tensor, " draw"]:
        """CMD of each random circuit."""
        return self._area((1 - self.random_values).abs(), at_none=1.0)

    def _area(self, values: Tensor, at_none: float = 0.0) -> Tensor:
        """Under the curve from no edge, where its value is known, to the largest size."""
        share = torch.cat([torch.zeros(1), self.sizes / self.n_edges])
        return torch.trapezoid(torch.nn.functional.pad(values, (1, 0), value=at_none), share, dim=-1)

    def smallest(self, keep: float = 0.9) -> int:
        """The smallest measured number of edges that is at least so faithful; ScoreError where none is."""
        enough = (self.values >= keep).nonzero().flatten().tolist()
        if not enough:
            raise ScoreError(
                f"none of the measured circuits is {keep:g} faithful: the best is {float(self.values.max()):.2f}\n"
                "  measure larger ones: faithfulness(..., sizes=[...])"
            )
        return int(self.sizes[enough[0]])

    def to_pandas(self, level: float = 0.95) -> pandas.DataFrame:
        """One row a size: edges, their share, f with its interval, the mean f of random circuits and their highest."""
        import pandas

        low, high = self.interval(level)
        columns: dict[str, Any] = {"edges": self.sizes, "share": self.sizes / self.n_edges, "faithfulness": self.values}
        columns |= {"low": low, "high": high}
        if len(self.random):
            columns |= {"random": self.random_values.mean(0), "random_max": self.random_values.amax(0)}
        return pandas.DataFrame({name: column.numpy() for name, column in columns.items()})

    def plot(self, ax: Axes | None = None) -> Axes:
        """f over the number of edges, with its interval, and random circuits in grey."""
        from .figures import faithfulness_curve

        return faithfulness_curve(self, ax)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file: the numbers, and everything else as JSON in its header."""
        tensors = {name: getattr(self, name) for name in TENSORS}
        files.write(path, KIND, tensors, {name: getattr(self, name) for name in LABELS})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Faithfulness:
        """Read a curve back; ScoreError as of `Circuit.load`."""
        tensors, about = files.read(path, KIND, TENSORS, LABELS)
        with files.understood(path, KIND):
            n, pairs = {"size": len(tensors["sizes"])}, {"pair": len(tensors["clean_ld"])}
            files.check_numbers(path, "per_pair", tensors["per_pair"], {**n, **pairs})
            files.check_numbers(path, "corrupt_ld", tensors["corrupt_ld"], pairs)
            named: dict[str, Any] = {**tensors, **{name: about[name] for name in LABELS}}
            return cls(**named)

    def __repr__(self) -> str:
        known = f", {self.n_known} of them those it was found on" if self.n_known else ""
        at = "; ".join(
            f"{100 * size / self.n_edges:.2g}% of the edges {value:.2f}"
            for size, value in zip(self.sizes.tolist(), self.values.tolist(), strict=True)
        )
        beside = ""
        if len(self.random):
            beside = f" (random {self.random_cpr.mean():.3f} and {self.random_cmd.mean():.3f})"
        return (
            f"Faithfulness of a circuit by {self.method} on {len(self.clean_ld)} pairs{known}: CPR {self.cpr:.3f}, "
            f"CMD {self.cmd:.3f}{beside}\n  {at}"
        )

    def _repr_html_(self) -> str:
        return self.to_pandas().to_html(index=False, float_format="{:.3f}".format)


def measure(
    circuit: Circuit,
    lens: Lens,
    clean: Prompts,
    corrupt: Prompts,
    answer: Answers,
    against: Answers,
    sizes: Sequence[int] | None,
    n_random: int,
    seed: int,
    progress: bool,
) -> Faithfulness:
    """See `Circuit.faithfulness`."""
    from .find import pairs_of

    files.check_same_model("this circuit", circuit.model, lens.identity, "find it again with this model")
    chosen = sizes_of(circuit.n_edges, sizes)
    draw = torch.Generator().manual_seed(seed)
    masks = [circuit.mask(n) for n in chosen]
    controls = [[random_like(circuit, n, draw) for n in chosen] for _ in range(n_random)]
    by_span = circuit.graph.spans != ("all",)
    lds: list[Tensor] = []
    contrasts, marks = [], []
    pairs = pairs_of(lens, clean, corrupt, answer, against, by_span, keep_corrupt=True, same_spans=False)
    with shown_progress(len(chosen) * (1 + n_random), progress) as advance:
        for pair in pairs:
            spans = _spans_in(circuit.graph, pair)
            forwards = PatchedForwards(pair)
            found = []
            for keep in (*masks, *(mask for row in controls for mask in row)):
                found.append(forwards.logit_differences(keep[:, :, spans]))
                advance()
            lds.append(torch.stack(found, 0).float())
            contrasts.append(pair.contrast)
            marks.append(pair.marks)
    clean_ld, corrupt_ld = (
        torch.cat([getattr(c, name) for c in contrasts]).float() for name in ("clean_ld", "corrupt_ld")
    )
    _check_gap(clean_ld, corrupt_ld)
    known = _known(circuit.marks, torch.cat(marks))
    if known:
        warn(
            f"{known} of these {len(clean_ld)} pairs are among those the circuit was found on, so that it looks better "
            "than it is: give others"
        )
    every = torch.cat(lds, 1).unflatten(0, (1 + n_random, len(chosen)))
    return Faithfulness(
        sizes=torch.tensor(chosen),
        per_pair=every[0],
        random=every[1:],
        clean_ld=clean_ld,
        corrupt_ld=corrupt_ld,
        n_edges=circuit.n_edges,
        method=circuit.method,
        n_known=known,
    )


def sizes_of(n_edges: int, sizes: Sequence[int] | None) -> list[int]:
    """The numbers of edges to keep, ascending; ScoreError for one that there is not."""
    found = [max(1, round(percent / 100 * n_edges)) for percent in PERCENT] if sizes is None else list(sizes)
    wrong = [n for n in found if not 0 <= n <= n_edges]
    if wrong or not found:
        raise ScoreError(f"sizes are numbers of edges, 0 to {n_edges}, given {wrong or 'none'}")
    return sorted(set(found))


def random_like(circuit: Circuit, n: int, draw: torch.Generator) -> Tensor:
    """Random edges, as many between each two layers at each span as the n best have; as a mask."""
    blocks = circuit.graph.blocks()
    chosen = []
    taken = torch.bincount(blocks[circuit.order[:n]], minlength=int(blocks.max()) + 1)
    shuffled = torch.randperm(len(blocks), generator=draw)
    for block in taken.nonzero().flatten().tolist():
        members = shuffled[blocks[shuffled] == block]
        chosen.append(members[: int(taken[block])])
    return mask_of(circuit.graph, torch.cat(chosen) if chosen else torch.empty(0, dtype=torch.long))


def _spans_in(graph: Graph, pair: Pair) -> list[int]:
    """Where a pair's spans are among the circuit's; ScoreError for one that is not."""
    lacking = [span for span in pair.graph.spans if span not in graph.spans]
    if lacking:
        raise ScoreError(
            f"these prompts have tokens in {', '.join(lacking)}, where the circuit has no edges: its spans are "
            f"{', '.join(graph.spans)}\n  find it on prompts of the same form, or with by_span=False"
        )
    return [graph.spans.index(span) for span in pair.graph.spans]


def _check_gap(clean: Tensor, corrupt: Tensor) -> None:
    gap, spread = float((clean - corrupt).mean()), float((clean - corrupt).abs().mean())
    if not abs(gap) > 1e-3 * spread:
        raise ScoreError(
            f"on the mean of these {len(clean)} pairs clean and corrupt have the same logit difference, "
            f"{float(clean.mean()):.4g}, so faithfulness is undefined: 0 / 0\n"
            "  give pairs in which the clean prompt is answered with `answer` rather than `against`"
        )


def _known(mine: Tensor, theirs: Tensor) -> int:
    """How many of their prompts are among mine."""
    if mine.shape[1] != theirs.shape[1]:
        return 0
    scale = mine.abs().amax().clamp_min(1e-30)
    return int(((theirs[:, None] - mine[None]).abs().amax(-1) <= 1e-4 * scale).any(1).sum())
