"""How faithful a circuit is (Hanna et al., arXiv:2403.17806; MIB, arXiv:2504.13151).

    f(n) = (m(n best edges) - m(none)) / (m(all) - m(none))        m the mean logit difference

Every edge that is not kept carries what its node wrote in the corrupt run, in a real forward: f(0) = 0, f(all) = 1.
Two areas over the share of edges kept, from 0 to 1, by the trapezoid rule: CPR, under f, is large where few edges carry
much; CMD, under |1 - f|, is small where the circuit does what the model does, no more and no less. A random circuit has
as many edges between each two layers at each span: its curve is what the choice of edges has to beat.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import ScoreError
from ..runs import files
from ..statistics.resampling import percentiles

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes


KIND = "faithfulness"
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
        circuit: `Circuit.mark` of the circuit; empty where nobody wrote it down.
    """

    sizes: Int[Tensor, " size"]
    per_pair: Float[Tensor, "size pair"]
    random: Float[Tensor, "draw size pair"]
    clean_ld: Float[Tensor, " pair"]
    corrupt_ld: Float[Tensor, " pair"]
    n_edges: int
    method: str
    n_known: int
    circuit: str = ""

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
        from .curves import faithfulness_curve

        return faithfulness_curve(self, ax)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file: the numbers, and everything else as JSON in its header."""
        tensors = {name: getattr(self, name) for name in TENSORS}
        files.write(path, KIND, tensors, {name: getattr(self, name) for name in (*LABELS, "circuit")})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Faithfulness:
        """Read a curve back; ScoreError as of `Circuit.load`."""
        tensors, about = files.read(path, KIND, TENSORS, LABELS)
        with files.understood(path, KIND):
            n, pairs = {"size": len(tensors["sizes"])}, {"pair": len(tensors["clean_ld"])}
            files.check_numbers(path, "per_pair", tensors["per_pair"], {**n, **pairs})
            files.check_numbers(path, "corrupt_ld", tensors["corrupt_ld"], pairs)
            named: dict[str, Any] = {**tensors, **{name: about[name] for name in LABELS}}
            return cls(**named, circuit=str(about.get("circuit", "")))

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
