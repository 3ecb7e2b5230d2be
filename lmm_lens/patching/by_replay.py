"""A patching grid by replay: the corrupt prompt's layers from the patched one on, in the rows a patch reaches."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..replay import UnfitError
from ..replay.batches import Batches
from ..replay.forwards import Forwards
from ..runs.checkpoint import Checkpoint
from .changes import CleanActivations
from .task import PatchingTask, shown_progress


def by_replay(grid: PatchingTask, finished: Checkpoint, progress: bool) -> Float[Tensor, "pair layer unit"]:
    """The patched logit differences, fp64; UnfitError where the model or the prompt cannot be replayed exactly."""
    forwards = Forwards(grid.lens, Batches(grid.tokens_per_pass, grid.lens.device))
    if forwards.reason:
        raise UnfitError(forwards.reason)
    names = [f"pair {row}" for row in range(grid.corrupt.n_rows)]
    todo = [row for row, name in enumerate(names) if name not in finished]
    clean = CleanActivations.of(grid) if todo else None
    with shown_progress(len(todo), progress) as advance:
        for row in todo:
            assert clean is not None
            finished.put(**{names[row]: _patched(grid, row, clean, forwards)})
            advance()
    return torch.stack([finished[name] for name in names])


def _patched(grid: PatchingTask, row: int, clean: CleanActivations, forwards: Forwards) -> Float[Tensor, "layer unit"]:
    """The patched logit differences of one pair, fp64; NaN where it has no such unit."""
    found = torch.full((len(grid.layers), len(grid.units.names)), torch.nan, dtype=torch.float64)
    cells = [
        (layer, unit)
        for layer in grid.layers
        for unit in range(grid.n_units(layer))
        if bool(grid.units.reached[row, unit])
    ]
    if cells:
        logits, _ = forwards.replayed(grid.corrupt, row, clean.changes(row, cells), tokens=grid.ids[row])
        correct, incorrect = logits.double().cpu().unbind(1)
        layers, units = zip(*cells, strict=True)
        found[[grid.layers.index(layer) for layer in layers], list(units)] = correct - incorrect
    return found
