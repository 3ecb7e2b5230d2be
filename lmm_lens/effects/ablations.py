"""An ablation of many head sets on one prompt, as interventions and as variants of a replay."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core.envoys import all_rows
from ..core.kernels import uniform
from ..errors import InterventionError, ScoreError
from ..hooks.heads import HeadSet, check_head
from ..interventions import AblateHeads
from ..interventions.means import HeadMeans
from ..interventions.patch import stored
from ..prompts.prompt import ROLES, Prompt
from ..prompts.rows import RowsLike, bind_rows
from ..replay import Edit, Recording, UnfitError, Variant
from ..runs.checkpoint import fingerprint

if TYPE_CHECKING:
    from ..hooks.results import Run
    from ..lens import Lens

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
        return AblationOn(self, lens, prompt, rows.prompt, other)


@dataclass(frozen=True, eq=False)
class AblationOn:
    """An ablation bound to a prompt.

    Attributes:
        ablation: what is done.
        lens, prompt: to what.
        rows: Bool[batch, position].
        other: the run that "resample" takes from.
    """

    ablation: Ablation
    lens: Lens
    prompt: Prompt
    rows: Bool[Tensor, "batch position"]
    other: Run | None = None

    def intervention(self, unit: int) -> AblateHeads:
        """One unit as an intervention."""
        reference: Any = self.other if self.ablation.mode == "resample" else self.ablation.reference
        return AblateHeads(self.ablation.units[unit], self.ablation.mode, self.rows, reference)

    def variants(self, recording: Recording, row: int) -> list[Variant]:
        """All units as variants of one prompt row's replay; UnfitError where one cannot be."""
        sources: dict[int, Tensor | None] = {}
        found = []
        for unit in self.ablation.units:
            if self.ablation.mode.startswith("uniform") and len(unit.by_layer()) > 1:
                raise UnfitError("even attention in several layers at once depends on the layers before")
            edits = []
            for layer, head in sorted(unit):
                if layer not in sources:
                    sources[layer] = self._source(recording, row, layer)
                edits.append(Edit(layer, "z", self.rows[row], sources[layer], head))
            found.append(Variant(tuple(edits)))
        return found

    def _source(self, recording: Recording, row: int, layer: int) -> Float[Tensor, "position head d_head"] | None:
        """What z is replaced by in a layer; None for zeros."""
        mode = self.ablation.mode
        if mode == "zero":
            return None
        if mode == "mean":
            return self._means(row, layer)
        if mode == "resample":
            assert self.other is not None
            return stored(self.other, "z", layer, self.prompt)[row]
        call = recording.calls[layer].attention
        if mode != "uniform" or call is None or recording.modules[layer].is_cross_attention:
            raise UnfitError(f"mode {mode!r} is computed in the forward itself")
        batch, _, n_tokens, _ = call.query.shape
        rows = all_rows(batch, n_tokens, call.query.device)
        out = []
        for start in range(0, n_tokens, 128):  # [head, query, key] in pieces
            out.append(call.read_values(uniform(call.visible(rows.part(start, start + 128))))[row])
        return torch.cat(out)

    def _means(self, row: int, layer: int) -> Tensor:
        means = self.ablation.reference
        assert isinstance(means, HeadMeans)
        means.edit(layer, self.prompt, self.lens.shape)  # checks that they are this model's
        roles = self.prompt.roles[row]
        missing = [ROLES[int(role)] for role in roles[self.rows[row]].unique() if means.counts[role] == 0]
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
    n_layers, n_heads = lens.n_layers, lens.n_heads
    if heads is None:
        every = [(layer, head) for layer in range(n_layers) for head in range(lens.shape.n_heads[layer])]
        return tuple(HeadSet([head], n_layers, n_heads) for head in every)
    if isinstance(heads, HeadSet):
        _check_shape(heads, n_layers, n_heads)
        heads = [HeadSet([head], n_layers, n_heads) for head in heads]
    given = list(heads)
    if not given or any(not isinstance(unit, HeadSet) or not len(unit) for unit in given):
        raise ScoreError(
            f"expected heads=HeadSet (each head alone) or a list of HeadSets (each set at once), given {heads!r}"
        )
    for unit in given:
        _check_shape(unit, n_layers, n_heads)
        for layer, head in unit:
            check_head(layer, head, n_layers, lens.shape.n_heads[layer])
    return tuple(given)


def _check_shape(heads: HeadSet, n_layers: int, n_heads: int) -> None:
    if (heads.n_layers, heads.n_heads) != (n_layers, n_heads):
        raise ScoreError(
            f"a head set was made for a model of {heads.n_layers} layers x {heads.n_heads} heads, "
            f"this one has {n_layers} x {n_heads}"
        )
