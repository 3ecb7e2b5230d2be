"""The cells of a patching grid as changes of the corrupt run: each one clean activation, put in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ..core.taps import Tap
from ..hooks.points import ModelShape, Read
from ..interventions.base import Intervention
from ..interventions.patch import PatchHeads, PatchPattern, PatchResidual, stored
from ..prompts.prompt import Prompt
from ..replay import Change, Edit, Variant, record
from ..replay.patterns import PatternOf
from .task import PatchingTask


@dataclass(frozen=True, eq=False)
class CleanActivations:
    """What every cell of a grid takes from, read once.

    Attributes:
        grid: the grid.
        found: by layer, Float[batch, position, ...] of the clean run; at "pattern" the clean pattern, over which a
            replay reads the corrupt values.
    """

    grid: PatchingTask
    found: Mapping[int, Float[Tensor, "batch position *any"]] | PatternOf

    @classmethod
    def of(cls, grid: PatchingTask) -> CleanActivations:
        """Run the clean prompt; UnfitError where its patterns cannot be recorded."""
        if grid.site == "pattern":
            return cls(grid, PatternOf(record(grid.lens, grid.clean)))
        run = grid.lens.run(grid.clean, read=[Read(grid.site, grid.layers)], logits="last")
        return cls(grid, {layer: stored(run, grid.site, layer, grid.corrupt) for layer in grid.layers})

    def changes(self, row: int, cells: Sequence[tuple[int, int]]) -> list[Change]:
        """Some cells of one pair, each a layer and a unit."""
        site, units = self.grid.site, self.grid.units
        sources: dict[int, Tensor | PatternOf] = {}  # a replay puts in together what has the same source
        for layer in {layer for layer, _ in cells}:
            sources[layer] = self.found if isinstance(self.found, PatternOf) else self.found[layer][row]
        found = []
        for layer, unit in cells:
            edit = Edit(
                layer=layer,
                site="z" if site == "pattern" else site,
                rows=units.mask(unit)[row],
                source=sources[layer],
                head=unit if units.by == "head" else None,
            )
            found.append(Change(_PatchCell(self.grid, layer, unit), Variant((edit,))))
        return found


@dataclass(frozen=True, eq=False)
class _PatchCell(Intervention):
    """One cell patched in a forward of the model itself. It holds no activation: it reads the clean run when applied.

    Args:
        grid: the grid.
        layer, unit: which cell.
    """

    grid: PatchingTask
    layer: int
    unit: int

    def taps(self, prompt: Prompt, shape: ModelShape) -> list[Tap]:
        """Those of the intervention that a user would write."""
        lens, site, rows = self.grid.lens, self.grid.site, self.grid.units.mask(self.unit)
        clean = lens.run(self.grid.clean, read=[Read(site, [self.layer], rows=rows)], logits="last")
        by_head = self.grid.units.by == "head"
        heads = [(self.layer, head) for head in ([self.unit] if by_head else range(shape.n_heads[self.layer]))]
        if site == "pattern":
            return PatchPattern(heads, clean, rows).taps(prompt, shape)
        if site == "z":
            return PatchHeads(heads, clean, rows).taps(prompt, shape)
        return PatchResidual([self.layer], clean, rows, site).taps(prompt, shape)

    def __repr__(self) -> str:
        return f"patching {self.grid.site} of layer {self.layer} by {self.grid.units.by} {self.unit}"
