"""One forward for each layer and unit of a patching grid, through the backend's own hook points.

Several units of a layer share one forward: the batch is repeated, and each copy gets another unit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.rows import Rows
from ..core.taps import Tap, TapContext
from ..hooks.points import ModelShape
from ..interventions.base import Intervention
from ..lens.plan import PlannedRun
from ..prompts.prompt import Prompt
from ..replay.forwards import PASSES_PER_JOB
from ..runs.checkpoint import Checkpoint
from .task import PatchingTask, shown_progress
from .units import Units

if TYPE_CHECKING:
    from ..lens import Lens

Pass = tuple[int, list[int]]  # a layer, and the units that share a forward
TOKENS_PER_PASS = 2048  # a batch of one gains 2.5 times; beyond this a CPU gains nothing


def by_forwards(grid: PatchingTask, finished: Checkpoint, progress: bool) -> Float[Tensor, "pair layer unit"]:
    """The patched logit differences, fp64."""
    lens, corrupt, site, units, chosen = grid.lens, grid.corrupt, grid.site, grid.units, grid.layers
    repeats = _Repeats(corrupt, grid.tokens_per_pass or TOKENS_PER_PASS)
    passes = [(layer, part) for layer in chosen for part in repeats.split(list(range(grid.n_units(layer))))]
    todo = [each for each in passes if _named(*each) not in finished]
    with shown_progress(len(todo), progress) as advance:
        for job in _jobs(todo, site, lens):
            for each, found in zip(job, _patched_job(grid, repeats, job), strict=True):
                finished.put(**{_named(*each): found})
                advance()
    patched = torch.full((corrupt.n_rows, len(chosen), len(units.names)), torch.nan, dtype=torch.float64)
    for layer, part in passes:
        patched[:, chosen.index(layer), part] = finished[_named(layer, part)].T
    return patched


def _patched_job(grid: PatchingTask, repeats: _Repeats, job: Sequence[Pass]) -> Iterator[Float[Tensor, "unit pair"]]:
    """The clean prompt once, and then each pass with what it needs of it; logit differences, fp64."""
    keep = _Keep(grid.site, tuple(dict.fromkeys(layer for layer, _ in job)), Rows(grid.units.by, grid.units.scope))
    plan = [PlannedRun(grid.clean, reads=[keep], tokens=grid.ids)]
    for layer, part in job:
        edit = _PatchUnits(grid.site, layer, grid.units, part, grid.corrupt.n_rows)
        plan.append(PlannedRun(repeats.of(len(part)), [edit], tokens=grid.ids.repeat(len(part), 1)))
    runs = grid.lens.run_all(plan)
    next(runs)
    for each, run in zip(job, runs, strict=True):
        correct, incorrect = run.logits[:, 0].double().cpu().unbind(1)
        yield (correct - incorrect).reshape(len(each[1]), -1)


def _named(layer: int, part: Sequence[int]) -> str:
    """A pass in the checkpoint."""
    return f"layer {layer} units {part[0]} to {part[-1]}"


def _jobs(passes: Sequence[Pass], site: str, lens: Lens) -> Iterator[list[Pass]]:
    """The passes in jobs; each runs the clean prompt once and keeps what its passes take from it."""
    if lens.remote:  # what a lost connection can cost
        for start in range(0, len(passes), PASSES_PER_JOB):
            yield list(passes[start : start + PASSES_PER_JOB])
    elif site == "pattern":  # patterns of all layers at once are large
        for _, layer in groupby(passes, key=lambda each: each[0]):
            yield list(layer)
    elif passes:
        yield list(passes)


class _Repeats:
    """A prompt as a batch of several copies of itself, as many as fit into a forward."""

    def __init__(self, prompt: Prompt, tokens_per_pass: int) -> None:
        self.prompt = prompt
        self.most = max(1, tokens_per_pass // (prompt.n_rows * prompt.n_tokens))
        # whatever lies along the batch, or along its pictures in order (flattened patches too), is repeated along
        # dimension 0; position ids of several axes have the batch elsewhere
        for name, value in prompt.inputs.items():
            if not isinstance(value, Tensor) or value.ndim == 0 or (name == "position_ids" and value.ndim == 3):
                self.most = 1
        self.made: dict[int, Prompt] = {}

    def split(self, units: list[int]) -> Iterator[list[int]]:
        """Units for one forward each, in parts of nearly the same size."""
        n_parts = -(-len(units) // self.most)
        return (part.tolist() for part in torch.tensor(units).tensor_split(n_parts))

    def of(self, n: int) -> Prompt:
        """n copies, one after the other: batch row i of copy c is row c * n_rows + i."""
        if n not in self.made:
            prompt, keys = self.prompt, self.prompt.cross_keys
            self.made[n] = (
                prompt
                if n == 1
                else replace(
                    prompt,
                    inputs={name: torch.cat([value] * n) for name, value in prompt.inputs.items()},
                    spans=prompt.spans * n,
                    images=prompt.images * n,
                    tokens=prompt.tokens * n,
                    masks={name: torch.cat([mask] * n) for name, mask in prompt.masks.items()},
                    texts=None if prompt.texts is None else prompt.texts * n,
                    videos=prompt.videos * n,
                    cross_keys=None if keys is None else torch.cat([keys] * n),
                )
            )
        return self.made[n]


@dataclass(frozen=True, eq=False)
class _Keep:
    """Leaves activations [batch, position, ...] where the model is, for the runs after this one.

    Args:
        site, layers, rows: of what.
    """

    site: str
    layers: Sequence[int]
    rows: Rows

    def taps(self, prompt: Prompt, shape: ModelShape) -> list[Tap]:
        """A read a layer that returns nothing."""
        n_tokens, by_row = prompt.n_tokens, self.site == "pattern"

        def keep(x: Tensor, context: TapContext) -> Tensor:
            rows = x.movedim(2, 1) if by_row else x
            context.carried.keep("clean", context.layer, context.positions, context.valid, rows, n_tokens)
            return x[..., :0]

        return [Tap(self.site, layer, self.rows, keep) for layer in self.layers]


@dataclass(frozen=True, eq=False)
class _PatchUnits(Intervention):
    """Patch one unit in each copy of a batch.

    Args:
        site, layer: where.
        units: all units.
        part: the units of this pass, one a copy.
        n_rows: of the unrepeated batch.
    """

    site: str
    layer: int
    units: Units
    part: Sequence[int]
    n_rows: int

    def taps(self, prompt: Prompt, shape: ModelShape) -> list[Tap]:
        """One edit, of all rows that belong to the unit of their copy."""
        rows = Rows(self.units.by, self.units.rows_of(self.part))
        by_head, by_row, part, n_rows = self.units.by == "head", self.site == "pattern", list(self.part), self.n_rows

        def put(x: Tensor, context: TapContext) -> Tensor:
            source = context.carried.get("clean", context.layer).to(x.dtype)
            copies = torch.arange(len(x), device=x.device)
            row = (copies % n_rows)[:, None]  # of the batch
            if not by_head:
                return source[row, context.positions]
            head = torch.tensor(part, device=x.device).repeat_interleave(n_rows)
            clean = source[row, context.positions, head[:, None]]  # copies*batch row d_head|key
            if by_row:
                x[copies, head] = clean
            else:
                x[copies, :, head] = clean
            return x

        return [Tap(self.site, self.layer, rows, put, edits=True)]

    def __repr__(self) -> str:
        return f"patching {self.site} of layer {self.layer} by {self.units.by}"
