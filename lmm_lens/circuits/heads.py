"""What a search for the smallest set of heads found: the set, and the curve it was read from."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from ..hooks.heads import HeadSet
from ..runs import files

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

    from ..lens import Lens

KIND = "smallest heads"
SAID = 20  # heads that are named in a sentence
TENSORS = ("per_prompt", "with_all", "with_none", "random")
LABELS = ("by", "keep", "metric", "ablation", "rows", "order", "shape", "sizes", "n_kept", "held_out", "model")


@dataclass(frozen=True, eq=False)
class SmallestHeads:
    """A set of heads that keeps an answer alone, and the curve it was read from.

    Attributes:
        by: how heads were ordered: "effect", "attribution" or "greedy".
        keep: which share of the metric had to be kept.
        metric, ablation, rows: what was measured, and how and where all other heads were ablated.
        order: the heads as they were added, best first.
        sizes: how many of them were kept in each measurement.
        per_prompt: Float[size, prompt], the metric with so many of them kept.
        with_all, with_none: Float[prompt], the metric with no head ablated, and with all of them.
        random: Float[draw, prompt], the metric with random sets like `heads` kept.
        n_kept: how many heads `heads` has.
        held_out: whether it was measured on other prompts than those the order was found on.
        model: the model's identity.
    """

    by: str
    keep: float
    metric: str
    ablation: str
    rows: str
    order: HeadSet
    sizes: tuple[int, ...]
    per_prompt: Float[Tensor, "size prompt"]
    with_all: Float[Tensor, " prompt"]
    with_none: Float[Tensor, " prompt"]
    random: Float[Tensor, "draw prompt"]
    n_kept: int
    held_out: bool
    model: dict[str, Any] = field(default_factory=dict)

    @property
    def heads(self) -> HeadSet:
        """The smallest set that keeps enough."""
        return self.order[: self.n_kept]

    @property
    def values(self) -> Float[Tensor, " size"]:
        """f at each size: 0 with all heads ablated, 1 with none."""
        return self._of(self.per_prompt)

    @property
    def random_values(self) -> Float[Tensor, " draw"]:
        """f of each random set."""
        return self._of(self.random)

    def _of(self, per_prompt: Tensor) -> Tensor:
        with_all, with_none = self.with_all.mean(), self.with_none.mean()
        found: Tensor = (per_prompt.mean(-1) - with_none) / (with_all - with_none)
        return found

    def to_pandas(self) -> pandas.DataFrame:
        """One row a size: how many heads, the last one added, f."""
        import pandas

        last = [str(self.order[n - 1 : n]) for n in self.sizes]
        return pandas.DataFrame({"heads": self.sizes, "added": last, "kept": self.values.numpy()})

    def plot(self, ax: Axes | None = None) -> Axes:
        """f over the number of heads, random sets as grey dots at the size of the smallest set."""
        from .curves import heads_curve

        return heads_curve(self, ax)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file: the numbers, and everything else as JSON in its header."""
        about = {name: getattr(self, name) for name in LABELS if name not in ("order", "shape")}
        about |= {"order": [list(head) for head in self.order], "shape": [self.order.n_layers, self.order.n_heads]}
        files.write(path, KIND, {name: getattr(self, name) for name in TENSORS}, about)

    @classmethod
    def load(cls, path: str | os.PathLike[str], lens: Lens | None = None) -> SmallestHeads:
        """Read it back; with a lens, it must be of its model. ScoreError as of `Circuit.load`."""
        tensors, about = files.read(path, KIND, TENSORS, LABELS)
        with files.understood(path, KIND):
            named: dict[str, Any] = {name: about[name] for name in LABELS if name not in ("order", "shape", "sizes")}
            order = HeadSet([tuple(head) for head in about["order"]], *about["shape"])
            sizes = tuple(int(n) for n in about["sizes"])
            prompts = {"prompt": len(tensors["with_all"])}
            files.check_numbers(path, "per_prompt", tensors["per_prompt"], {"size": len(sizes), **prompts})
            files.check_numbers(path, "with_none", tensors["with_none"], prompts)
            if lens is not None:
                files.check_model(path, named["model"], lens.identity)
            return cls(order=order, sizes=sizes, **named | tensors)

    def __repr__(self) -> str:
        kept = float(self.values[self.sizes.index(self.n_kept)])
        where = "prompts not used to order them" if self.held_out else "prompts that they were ordered on"
        beside = f"; random sets like it keep {float(self.random_values.mean()):.2f}" if len(self.random) else ""
        named = f"{self.heads[:SAID]}{f' and {self.n_kept - SAID} more' if self.n_kept > SAID else ''}"
        return (
            f"SmallestHeads by {self.by}: {self.n_kept} heads keep {kept:.2f} of {self.metric} with all others ablated "
            f"({self.ablation}, rows {self.rows!r}), on {len(self.with_all)} {where}{beside}\n  {named}"
        )

    def _repr_html_(self) -> str:
        return self.to_pandas().to_html(index=False, float_format="{:.3f}".format)
