"""Ablations of heads of the vision tower: the tower runs again from the ablated layer on, then the decoder's layers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InterventionError, ScoreError
from ..hooks.heads import VISION, HeadSet, check_head, check_part
from ..interventions import AblateHeads
from ..prompts.prompt import Prompt
from ..replay import Change, Edit, UnfitError, Variant
from ..replay.tower import TowerReplay
from ..replay.ways import Way
from .ablations import Ablation

if TYPE_CHECKING:
    from ..lens import Lens
    from ..replay.forwards import Forwards

UNITS_AT_ONCE = 32
"""Units whose changed pictures are held at once, each as large as what enters the decoder."""


def tower_units(lens: Lens, heads: HeadSet | Sequence[HeadSet] | None) -> tuple[HeadSet, ...]:
    """The head sets of an experiment on the tower: every head that reaches an answer, a set's, or several sets.

    Raises:
        ScoreError: no heads, or heads behind the layers whose features the model takes.
        HookError: a head that the tower has not, or heads of the decoder.
    """
    vision = lens.vision
    shape, n = vision.shape, (vision.n_layers, vision.n_heads)
    if heads is None:
        every = [(layer, head) for layer in range(vision.n_used) for head in range(shape.n_heads[layer])]
        return tuple(HeadSet([head], *n, VISION) for head in every)
    units = (
        [HeadSet([head], heads.n_layers, heads.n_heads, heads.part) for head in heads]
        if isinstance(heads, HeadSet)
        else list(heads)
    )
    if not units or not all(isinstance(unit, HeadSet) and len(unit) for unit in units):
        raise ScoreError(f"expected heads=HeadSet or a list of HeadSets of the vision tower, given {heads!r}")
    for unit in units:
        check_part(unit, VISION, "this experiment")
        if (unit.n_layers, unit.n_heads) != n:
            raise ScoreError(
                f"a head set was made for a tower of {unit.n_layers} layers x {unit.n_heads} heads, this one has "
                f"{n[0]} x {n[1]}"
            )
        for layer, head in unit:
            check_head(layer, head, n[0], shape.n_heads[layer])
            if layer >= vision.n_used:
                raise ScoreError(f"layer {layer} of the tower reaches no answer: {vision.n_used} layers are used")
    return tuple(units)


@dataclass(frozen=True, eq=False)
class TowerAblation(Ablation):
    """What is done to each head set of the tower: mode "zero" or "uniform", in tokens of the tower."""

    def __post_init__(self) -> None:
        if self.reference is not None:
            raise InterventionError("heads of the vision tower are ablated by zero or uniform, without a reference")
        AblateHeads([(0, 0)], self.mode, self.rows, part=VISION)  # checks mode

    def on(self, lens: Lens, prompt: Prompt) -> TowerAblationOn:  # type: ignore[override]  # of the other part
        """The ablation on a prompt."""
        if prompt.n_rows != 1:
            raise ScoreError(f"heads of the vision tower are ablated on prompts of one row, given {prompt.n_rows} rows")
        edits = tuple(AblateHeads(unit, self.mode, self.rows) for unit in self.units)
        return TowerAblationOn(self, lens, prompt, edits)


@dataclass(frozen=True, eq=False)
class TowerAblationOn:
    """An ablation in the tower bound to a prompt.

    Attributes:
        ablation: what is done.
        lens: the model.
        prompt: to what.
        interventions: each unit's.
    """

    ablation: TowerAblation
    lens: Lens
    prompt: Prompt
    interventions: tuple[AblateHeads, ...]

    def changed(self, forwards: Forwards, row: int) -> tuple[Float[Tensor, "unit vocab"], Way]:
        """The logits with each unit ablated, at the last token, and how they were computed."""
        replay: TowerReplay | None = None
        try:
            replay = TowerReplay(self.lens, self.prompt)
            if self.lens.shape.reinjects or self.lens.shape.crossing:
                raise UnfitError("features of the tower enter the decoder's later layers, too")
            found = [
                self._replayed(forwards, replay, start) for start in range(0, len(self.interventions), UNITS_AT_ONCE)
            ]
            return torch.cat([logits for logits, _ in found]), found[0][1]
        except UnfitError as why:
            forwards.reason = str(why)
        logits = []
        for edit, first in zip(self.interventions, self._firsts, strict=True):
            with nullcontext() if replay is None else replay.skipping(first):
                logits.append(self.lens.run(self.prompt, [edit], logits="last").logits[row, 0].cpu())
        return torch.stack(logits), Way.EACH

    @property
    def _firsts(self) -> list[int]:
        return [min(unit.by_layer()) for unit in self.ablation.units]

    def _replayed(self, forwards: Forwards, replay: TowerReplay, start: int) -> tuple[Tensor, Way]:
        rows = self.prompt.mask("visual")[0]
        part = slice(start, start + UNITS_AT_ONCE)
        edits, firsts = self.interventions[part], self._firsts[part]
        changes = []
        for first, together in groupby(zip(firsts, edits, strict=True), key=lambda each: each[0]):
            same = [edit for _, edit in together]
            for attempt in forwards.batches.attempts(least=replay.n_tokens):
                with attempt:
                    entering = replay.entering(same, first, max(1, attempt.rows // replay.n_tokens))
            changes += [
                Change(edit, Variant((Edit(0, "resid_pre", rows, x),))) for edit, x in zip(same, entering, strict=True)
            ]
        return forwards.replayed(self.prompt, 0, changes)
