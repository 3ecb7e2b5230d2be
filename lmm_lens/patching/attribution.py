"""Attribution patching: all effects of activation patching at once, to first order (Nanda 2023; arXiv:2310.10348).

    effect ~ (a_clean - a_corrupt) . dLD / da_corrupt / (LD_clean - LD_corrupt)

summed over the rows and dimensions of a unit. One forward of the clean prompt, one forward and one backward of the
corrupt one give every layer and unit. It is the derivative of the patching effect, so it misleads where the model
saturates; compare the two with `PatchScores.rank_correlation`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from ..answers.contrast import AnswersLike, contrast, logit_difference
from ..core.rows import Rows
from ..errors import RemoteError
from ..hooks.points import TOWER, Read
from ..interventions.patch import check_same_layout
from ..prompts.prompt import Prompt
from ..prompts.rows import RowsLike
from .activation import checked_pair, chosen_layers
from .probe import by_unit, differentiable, probing
from .scores import PatchScores
from .slopes_in_tower import tower_attribution
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
            Of the vision tower "vision.z" and so on, as in `lmm_lens.patching.in_tower`: one backward pass through the
            decoder, the projector and the tower.

    Returns:
        PatchScores of method "attribution", on the axes of `activation_patching` with the same arguments.

    Raises:
        ScoreError, InterventionError, HookError: as `activation_patching`.
        RemoteError: the model is on a server.
        ModelError: no gradient reaches the vision tower.
    """
    if lens.remote:
        raise RemoteError("gradients do not travel: this needs a lens with remote=False")
    if isinstance(site, str) and site.startswith(TOWER):
        return tower_attribution(
            lens, clean, corrupt, site, by, layers=layers, rows=rows, groups=groups, answers=answers
        )
    check_units(site, by)
    check_same_layout(*checked_pair(clean, corrupt))
    units = Units.of(by, corrupt, max(lens.shape.n_heads), rows, groups)
    chosen = chosen_layers(site, layers, lens.shape)
    clean_run = lens.run(clean, read=[Read(site, chosen, rows=units.scope)], logits="last")
    probe = probing(site, chosen, Rows(by, units.scope))
    with differentiable(lens.model):
        logits = lens.run(corrupt, [probe], logits="last", grad=True).logits[:, 0]
        pair = contrast(lens, clean_run.logits[:, 0], logits, answers)
        leaves = probe.leaves
        total = logit_difference(logits, pair.ids).sum()  # the rows of a batch do not depend on each other
        gradients = iter(torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True))
    change = torch.full((corrupt.n_rows, len(chosen), len(units.names)), torch.nan, dtype=torch.float64)
    for index, layer in enumerate(chosen):
        clean_there = clean_run.reads[site, layer]
        activation, gradient = probe.whole(layer, gradients, clean_there.shape[-1])
        product = (clean_there - activation) * gradient
        found = by_unit(product, clean_run.positions[site], site, units.by, units.masks).cpu()
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
