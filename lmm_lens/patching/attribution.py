"""Attribution patching: all effects of activation patching at once, to first order (Nanda 2023; arXiv:2310.10348).

    effect ~ (a_clean - a_corrupt) . dLD / da_corrupt / (LD_clean - LD_corrupt)

summed over the rows and dimensions of a unit. One forward of the clean prompt, one forward and one backward of the
corrupt one give every layer and unit. It is the derivative of the patching effect, so it misleads where the model
saturates; compare the two with `PatchScores.rank_correlation`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..answers.contrast import AnswersLike, contrast, logit_difference
from ..core.rows import Rows
from ..core.taps import Tap, TapContext
from ..errors import RemoteError
from ..hooks.points import ModelShape, Read
from ..hooks.results import Run
from ..interventions.base import Intervention
from ..interventions.patch import check_same_layout
from ..prompts.prompt import Prompt
from ..prompts.rows import RowsLike
from .activation import checked_pair, chosen_layers
from .scores import PatchScores
from .units import GroupsLike, Units, check_units

if TYPE_CHECKING:
    from ..lens import Lens


def attribution_patching(
    lens: Lens,
    clean: Prompt,
    corrupt: Prompt,
    site: str = "z",
    by: str = "head",
    *,
    layers: Iterable[int] | None = None,
    rows: RowsLike = "all",
    groups: GroupsLike | None = None,
    answers: AnswersLike | None = None,
) -> PatchScores:
    """Estimate the effect of every patch from one backward pass.

    The model's parameters need no gradient for it, and get none.

    Args:
        lens, clean, corrupt, site, by, layers, rows, groups, answers: as in `activation_patching`. At "pattern" four
            tensors as large as the patterns of all layers at these rows are held: name layers or rows for long prompts.

    Returns:
        PatchScores of method "attribution", on the axes of `activation_patching` with the same arguments.

    Raises:
        ScoreError, InterventionError, HookError: as `activation_patching`.
        RemoteError: the model is on a server.
    """
    if lens.remote:
        raise RemoteError("gradients do not travel: this needs a lens with remote=False")
    check_units(site, by)
    check_same_layout(*checked_pair(clean, corrupt))
    units = Units.of(by, corrupt, max(lens.shape.n_heads), rows, groups)
    chosen = chosen_layers(site, layers, lens.shape)
    clean_run = lens.run(clean, read=[Read(site, chosen, rows=units.scope)], logits="last")
    probe = _Probe(site, tuple(chosen), Rows(by, units.scope))
    with differentiable(lens.model):
        logits = lens.run(corrupt, [probe], logits="last", grad=True).logits[:, 0]
        pair = contrast(lens, clean_run.logits[:, 0], logits, answers)
        leaves = [leaf for layer in chosen for _, leaf in probe.found[layer]]
        total = logit_difference(logits, pair.ids).sum()  # the rows of a batch do not depend on each other
        gradients = iter(torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True))
    change = torch.full((corrupt.n_rows, len(chosen), len(units.names)), torch.nan, dtype=torch.float64)
    dim = 2 if site == "pattern" else 1
    for index, layer in enumerate(chosen):
        pieces = [(activation, next(gradients)) for activation, _ in probe.found[layer]]
        activation, gradient = (torch.cat(parts, dim) for parts in zip(*pieces, strict=True))
        product = (clean_run.reads[site, layer] - activation) * gradient
        found = _by_unit(product, clean_run, site, units).cpu()
        change[:, index, : found.shape[1]] = found
    effects = pair.normalized(change).masked_fill(~units.reached[:, None], torch.nan)
    return PatchScores.of_pairs(
        pair,
        effects,
        chosen,
        site=site,
        by=by,
        rows=units.label,
        method="attribution",
        units=units.names,
        model=lens.identity,
    )


def _by_unit(product: Tensor, run: Run, site: str, units: Units) -> Tensor:
    """Sum (clean - corrupt) * gradient, [batch, query, ...], over what belongs to each unit: [batch, unit], fp64."""
    product = product.double()
    if site == "pattern":
        product = product.movedim(2, 1)  # batch query head key
    positions = run.positions[site]
    per_row = product.sum(-1) if units.by == "head" else product.flatten(2).sum(-1)  # batch row [head]
    padding = (positions < 0).to(per_row.device)
    per_row = per_row.masked_fill(padding.reshape(*padding.shape, *[1] * (per_row.ndim - 2)), 0)
    if units.by == "head":
        return per_row.sum(1)
    batch = torch.arange(len(positions), device=positions.device)[:, None]
    mine = units.masks.to(positions.device)[:, batch, positions.clamp_min(0)]
    return torch.einsum("br,ubr->bu", per_row, mine.double())


@contextmanager
def differentiable(*modules: nn.Module) -> Iterator[None]:
    """Inside, gradients of activations are on, whatever is switched off around, and those of parameters are off.

    The graph then holds only what probes need.
    """
    trained = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@dataclass(frozen=True, eq=False)
class _Probe(Intervention):
    """Add zeros that remember their gradient, and keep what they were added to. For one run.

    Args:
        site, layers, rows: where.

    Attributes:
        found: layer to (activation, probe) of each part of its rows, in order.
    """

    site: str
    layers: tuple[int, ...]
    rows: Rows
    found: dict[int, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)

    def taps(self, prompt: Prompt, shape: ModelShape) -> list[Tap]:
        """One edit a layer that changes nothing."""
        self.found.update({layer: [] for layer in self.layers})
        return [Tap(self.site, layer, self.rows, self._add, edits=True) for layer in self.layers]

    def _add(self, x: Tensor, context: TapContext) -> Tensor:
        probe = torch.zeros_like(x, requires_grad=True)
        self.found[context.layer].append((x.detach(), probe))
        return x + probe

    def __repr__(self) -> str:
        return f"probing {self.site}"
