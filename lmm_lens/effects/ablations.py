"""An ablation of many head sets on one prompt, as changes of its forward."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InterventionError, ScoreError
from ..hooks.heads import DECODER, HeadSet, check_head, check_part
from ..hooks.points import ModelShape
from ..interventions import AblateHeads
from ..interventions.means import HeadMeans
from ..interventions.patch import stored
from ..prompts.prompt import ROLES, Prompt
from ..prompts.rows import RowsLike, bind_rows
from ..replay import Change, Edit, Variant
from ..replay.patterns import EvenAttention, Pattern
from ..runs.checkpoint import fingerprint

if TYPE_CHECKING:
    from ..hooks.results import Run
    from ..lens import Lens
    from ..replay.forwards import Forwards
    from ..replay.ways import Way

Partner = Callable[[Prompt], Prompt]
"""For mode "resample": gives the prompt of the same layout whose head outputs are put in."""


@dataclass(frozen=True, eq=False)
class Ablation:
    """What is done to each head set.

    Args:
        units: the head sets.
        mode: of `AblateHeads`.
        rows: which query rows.
        reference: head means for "mean", for "resample" a function that gives the other prompt.
    """

    units: tuple[HeadSet, ...]
    mode: str = "zero"
    rows: RowsLike = "last"
    reference: HeadMeans | Partner | None = None

    def __post_init__(self) -> None:
        if self.mode == "resample":
            if not callable(self.reference):
                raise InterventionError(
                    "mode 'resample' needs reference=f, a function that gives the prompt whose head outputs are put "
                    f"in, given {type(self.reference).__name__}\n"
                    "  as in reference=lambda prompt: blank_images(lens, prompt)"
                )
        else:
            reference: Any = self.reference
            AblateHeads([(0, 0)], self.mode, self.rows, reference)  # checks mode and reference

    def on(self, lens: Lens, prompt: Prompt) -> AblationOn:
        """The ablation on a prompt."""
        other: Run | None = None
        if self.mode == "resample":
            assert callable(self.reference)
            partner = self.reference(prompt)
            if not isinstance(partner, Prompt):
                raise InterventionError(f"reference(prompt) must give a prompt, it gave {type(partner).__name__}")
            with lens.nothing_applied():
                other = lens.run(partner, read=["z"], logits="last")
        rows = bind_rows(self.rows, prompt).prompt_only()
        empty = (~rows.prompt.any(1)).nonzero().flatten().tolist()
        if empty:
            raise ScoreError(
                f"rows {rows.label!r} select no token of prompt row {empty[0]}, so nothing would be ablated there\n"
                "  leave such prompts out, or choose other rows"
            )
        reference: Any = other if self.mode == "resample" else self.reference
        interventions = tuple(AblateHeads(unit, self.mode, rows.prompt, reference) for unit in self.units)
        return AblationOn(self, prompt, lens.shape, rows.prompt, interventions, other)


@dataclass(frozen=True, eq=False)
class AblationOn:
    """An ablation bound to a prompt.

    Attributes:
        ablation: what is done.
        prompt: to what.
        shape: of the model.
        rows: Bool[batch, position].
        interventions: each unit's, on the whole batch.
        other: the run that "resample" takes from.
    """

    ablation: Ablation
    prompt: Prompt
    shape: ModelShape
    rows: Bool[Tensor, "batch position"]
    interventions: tuple[AblateHeads, ...]
    other: Run | None = None

    def changes(self, row: int) -> list[Change]:
        """The ablation of each unit, for the replay of one prompt row."""
        layers = {layer for unit in self.ablation.units for layer, _ in unit}
        sources = {layer: self.source(row, layer) for layer in layers}
        return [
            Change(intervention, self._replayed(unit, row, sources))
            for unit, intervention in zip(self.ablation.units, self.interventions, strict=True)
        ]

    def changed(self, forwards: Forwards, row: int) -> tuple[Float[Tensor, "unit vocab"], Way]:
        """The logits of a prompt row with each unit ablated, at its last token, and how they were computed."""
        return forwards.changed(self.prompt, row, self.changes(row))

    def _replayed(self, unit: HeadSet, row: int, sources: Mapping[int, Tensor | Pattern | None]) -> Variant | str:
        """One unit's ablation as a replay makes it, or why none can."""
        if self.ablation.mode == "uniform_noncausal":
            return "attention to future keys is made in the forward itself"
        if self.ablation.mode == "uniform" and len(unit.by_layer()) > 1:
            return "even attention in several layers at once depends on the layers before"
        return Variant(tuple(Edit(layer, "z", self.rows[row], sources[layer], head) for layer, head in sorted(unit)))

    def source(self, row: int, layer: int) -> Tensor | Pattern | None:
        """What z is replaced by in a layer; None for zeros."""
        if self.ablation.mode == "mean":
            return self._means(row, layer)
        if self.ablation.mode == "resample":
            assert self.other is not None
            return stored(self.other, "z", layer, self.prompt)[row]
        return EvenAttention() if self.ablation.mode == "uniform" else None

    def _means(self, row: int, layer: int) -> Float[Tensor, "position head d_head"]:
        means = self.ablation.reference
        assert isinstance(means, HeadMeans)
        means.edit(layer, self.prompt, self.shape)  # checks that they are this model's
        roles = self.prompt.roles[row]
        present = set(roles[self.rows[row]].tolist())
        missing = [ROLES[role] for role in sorted(present) if means.counts[role] == 0]
        if missing:
            raise InterventionError(
                f"the reference prompts of the means hold no token of role {missing[0]!r}, which this prompt has\n"
                "  compute head_means over prompts of the same form"
            )
        return means.values[layer][roles]


def described(reference: HeadMeans | Partner | None) -> str:
    """What tells one reference from another: the means' numbers, or the source of the function."""
    if not callable(reference):
        return fingerprint(reference)
    with suppress(OSError, TypeError):  # no source: typed at a prompt, or no plain function
        return hashlib.sha256(inspect.getsource(reference).encode()).hexdigest()[:16]
    return getattr(reference, "__qualname__", type(reference).__qualname__)


def units_of(lens: Lens, heads: HeadSet | Sequence[HeadSet] | None) -> tuple[HeadSet, ...]:
    """The head sets of an experiment: every head alone, each of a set's alone, or several sets, each at once.

    Raises:
        ScoreError: no heads, or something that is no head set.
        HookError: a head that the model has not.
    """
    if heads is None or isinstance(heads, HeadSet):
        return tuple(HeadSet([head], lens.n_layers, lens.n_heads) for head in heads_of(lens, heads))
    units = list(heads)
    if not units or not all(isinstance(unit, HeadSet) and len(unit) for unit in units):
        raise _no_heads(heads)
    return tuple(heads_of(lens, unit) for unit in units)


def heads_of(lens: Lens, heads: HeadSet | None) -> HeadSet:
    """All heads of the model, or the given ones, which it has; errors as of `units_of`."""
    n_layers, n_heads = lens.n_layers, lens.n_heads
    if heads is None:
        every = [(layer, head) for layer in range(n_layers) for head in range(lens.shape.n_heads[layer])]
        return HeadSet(every, n_layers, n_heads)
    if not isinstance(heads, HeadSet) or not heads:
        raise _no_heads(heads)
    check_part(heads, DECODER, "this experiment")
    if (heads.n_layers, heads.n_heads) != (n_layers, n_heads):
        raise ScoreError(
            f"a head set was made for a model of {heads.n_layers} layers x {heads.n_heads} heads, "
            f"this one has {n_layers} x {n_heads}"
        )
    for layer, head in heads:
        check_head(layer, head, n_layers, lens.shape.n_heads[layer])
    return heads


def _no_heads(given: object) -> ScoreError:
    return ScoreError(
        f"expected heads=HeadSet (each head alone) or a list of HeadSets (each set at once), given {given!r}"
    )
