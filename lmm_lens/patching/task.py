"""A patching grid: what is patched into what, and where."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Int
from torch import Tensor

from ..prompts.prompt import Prompt
from .units import Units

if TYPE_CHECKING:
    from ..lens import Lens


@dataclass(frozen=True, eq=False)
class PatchingTask:
    """What `activation_patching` was asked for.

    Attributes:
        lens: the model.
        clean, corrupt: pairs, row by row.
        site: hook point.
        units: what is patched at once.
        layers: where.
        ids: Int[pair, 2], the tokens (correct, incorrect).
        tokens_per_pass: how large batches may be; None for what suits the device.
    """

    lens: Lens
    clean: Prompt
    corrupt: Prompt
    site: str
    units: Units
    layers: tuple[int, ...]
    ids: Int[Tensor, "pair 2"]
    tokens_per_pass: int | None = None

    def n_units(self, layer: int) -> int:
        """How many units a layer has: a layer may have fewer heads than another."""
        return self.lens.shape.n_heads[layer] if self.units.by == "head" else len(self.units.names)


@contextmanager
def shown_progress(n: int, shown: bool) -> Iterator[Callable[[], None]]:
    """A function to call for each finished step."""
    from rich.progress import Progress

    with Progress(transient=True, disable=not shown) as bar:
        task = bar.add_task("patching", total=n)
        yield lambda: bar.advance(task)
