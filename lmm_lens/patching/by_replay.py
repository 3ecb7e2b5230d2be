"""A patching grid by replay: the corrupt prompt's layers from the patched one on, in the rows a patch reaches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.envoys import all_rows
from ..hooks.points import Read
from ..interventions.patch import stored
from ..replay import Edit, Recording, UnfitError, Variant, record
from ..replay.batches import Batches
from ..replay.forwards import Forwards
from ..runs.checkpoint import Checkpoint
from .by_forwards import forward_of
from .task import PatchingTask, shown_progress


def by_replay(grid: PatchingTask, finished: Checkpoint, progress: bool) -> Float[Tensor, "pair layer unit"]:
    """The patched logit differences, fp64; UnfitError where the model or the prompt cannot be replayed exactly."""
    forwards = Forwards(grid.lens, Batches(grid.tokens_per_pass, grid.lens.device))
    if forwards.reason:
        raise UnfitError(forwards.reason)
    n_rows, names = grid.corrupt.n_rows, [f"pair {row}" for row in range(grid.corrupt.n_rows)]
    todo = [row for row in range(n_rows) if names[row] not in finished]
    sources = _Sources(grid) if todo else None
    with shown_progress(len(todo), progress) as advance:
        for row in todo:
            assert sources is not None
            cells = [
                (layer, unit)
                for layer in grid.layers
                for unit in range(_n_units(grid, layer))
                if bool(grid.units.reached[row, unit])
            ]
            variants = [sources.variant(row, layer, unit) for layer, unit in cells]
            found = torch.full((len(grid.layers), len(grid.units.names)), torch.nan, dtype=torch.float64)
            if cells:
                ask = _Asked(grid, row, cells, variants)
                logits = forwards.replayed(grid.corrupt, row, ask.variants, ask.forward, ask.difference)
                for (layer, unit), value in zip(cells, logits, strict=True):
                    found[grid.layers.index(layer), unit] = value
            finished.put(**{names[row]: found})
            advance()
    return torch.stack([finished[name] for name in names])


def _n_units(grid: PatchingTask, layer: int) -> int:
    return grid.lens.shape.n_heads[layer] if grid.units.by == "head" else len(grid.units.names)


@dataclass(frozen=True, eq=False)
class _Asked:
    """What `Forwards` is asked for one pair.

    Attributes:
        grid, row: which pair.
        cells: (layer, unit) of each change.
        made: the changes.
    """

    grid: PatchingTask
    row: int
    cells: Sequence[tuple[int, int]]
    made: Sequence[Variant]

    def variants(self, recording: Recording, row: int) -> Sequence[Variant]:
        """All changes."""
        return self.made

    def forward(self, index: int) -> Tensor:
        """One change by a forward of the model, reduced."""
        return forward_of(self.grid, *self.cells[index])[self.row]

    def difference(self, logits: Float[Tensor, "n vocab"]) -> Float[Tensor, " n"]:
        """The logit differences, fp64."""
        chosen = logits[:, self.grid.ids[self.row].to(logits.device)].double().cpu()
        return chosen[:, 0] - chosen[:, 1]


class _Sources:
    """The clean activations, read once."""

    def __init__(self, grid: PatchingTask) -> None:
        self.grid = grid
        self.by_pattern = grid.site == "pattern"
        self.kept: dict[tuple[int, int], Tensor] = {}
        if self.by_pattern:
            self.recordings = record(grid.lens, grid.clean), record(grid.lens, grid.corrupt)
        else:
            self.run = grid.lens.run(grid.clean, read=[Read(grid.site, grid.layers)], logits="last")

    def variant(self, row: int, layer: int, unit: int) -> Variant:
        """One cell of the grid."""
        units, by_head = self.grid.units, self.grid.units.by == "head"
        if (layer, row) not in self.kept:
            self.kept[layer, row] = self._source(layer, row)
        rows = units.masks[0 if by_head else unit][row]
        site = "z" if self.by_pattern else self.grid.site
        return Variant((Edit(layer, site, rows, self.kept[layer, row], unit if by_head else None),))

    def _source(self, layer: int, row: int) -> Float[Tensor, " position *any"]:
        if not self.by_pattern:
            return stored(self.run, self.grid.site, layer, self.grid.corrupt)[row]
        return self._mixed(*self.recordings, layer)[row]

    def _mixed(self, clean: Recording, corrupt: Recording, layer: int) -> Tensor:
        """The clean pattern over the corrupt values: what a head gives whose pattern alone is patched."""
        shown, values = clean.calls[layer].attention, corrupt.calls[layer].attention
        if shown is None or values is None or clean.modules[layer].is_cross_attention:
            raise UnfitError("its pattern is not over the tokens of the sequence")
        batch, _, n_tokens, _ = shown.query.shape
        rows = all_rows(batch, n_tokens, shown.query.device)
        parts = (rows.part(start, start + 128) for start in range(0, n_tokens, 128))
        return torch.cat([values.read_values(shown.probabilities(part)) for part in parts], 1)
