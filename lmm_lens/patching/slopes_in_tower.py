"""Attribution patching in the vision tower: all its layers, patches and heads from one backward pass."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from ..answers.contrast import AnswersLike, contrast, logit_difference
from ..core.rows import Rows
from ..errors import ModelError
from ..hooks.heads import VISION
from ..hooks.points import Read
from ..prompts.prompt import Prompt
from ..prompts.rows import RowsLike
from .probe import by_unit, differentiable, probing
from .scores import PatchScores
from .tower_units import TowerUnits, checked_tower_pair, chosen_tower_layers
from .units import GroupsLike

if TYPE_CHECKING:
    from ..lens import Lens


def tower_attribution(
    lens: Lens,
    clean: Prompt,
    corrupt: Prompt,
    site: str,
    by: str,
    *,
    layers: Iterable[int] | None = None,
    rows: RowsLike = "all",
    groups: GroupsLike | None = None,
    answers: AnswersLike | None = None,
) -> PatchScores:
    """`attribution_patching` at a hook point of the vision tower: through the projector and the decoder.

    Args:
        lens, clean, corrupt, site, by, layers, rows, groups, answers: as in `lmm_lens.patching.in_tower`.

    Raises:
        ScoreError, InterventionError, HookError: as there.
        ModelError: no gradient reaches the tower.
    """
    inner = checked_tower_pair(clean, corrupt, site, by)
    chosen = chosen_tower_layers(lens, layers)
    clean_run = lens.run(clean, read=[Read(site, chosen)], logits="last")
    assert clean_run.tower is not None
    units = TowerUnits.of(by, clean_run.tower, lens.vision.n_heads, rows, groups)
    probe = probing(inner, chosen, Rows(by, torch.ones_like(units.masks[0])), VISION)
    with differentiable(lens.model):
        logits = lens.run(corrupt, [probe], logits="last", grad=True).logits[:, 0]
        pair = contrast(lens, clean_run.logits[:, 0], logits, answers)
        total, leaves = logit_difference(logits, pair.ids).sum(), probe.leaves
        found = torch.autograd.grad(total, leaves, allow_unused=True) if total.requires_grad else [None] * len(leaves)
    if all(slope is None for slope in found):
        raise ModelError(
            f"no gradient reaches the vision tower of {type(lens.model).__name__}: it runs without gradients, or its "
            "pictures become discrete tokens\n  activation_patching needs none"
        )
    gradients = iter(
        torch.zeros_like(leaf) if slope is None else slope for slope, leaf in zip(found, leaves, strict=True)
    )
    positions = clean_run.positions[site]
    change = torch.full((1, len(chosen), len(units.names)), torch.nan, dtype=torch.float64)
    for index, layer in enumerate(chosen):
        clean_there = clean_run.reads[site, layer]
        activation, gradient = probe.whole(layer, gradients, clean_there.shape[-1])
        product = (clean_there - activation) * gradient
        if by == "head":  # rows that are not patched
            away = ~units.masks[0].to(product.device)
            product = product.masked_fill(away[:, None, :, None] if inner == "pattern" else away[:, :, None, None], 0)
        effect = by_unit(product, positions, inner, by, units.masks).sum(0).cpu()
        change[0, index, : len(effect)] = effect
    return PatchScores.of_pairs(
        pair,
        pair.normalized(change),
        chosen,
        site=site,
        by=by,
        rows=units.label,
        method="attribution",
        units=units.names,
        model=lens.identity,
        shape=(lens.vision.n_layers, lens.vision.n_heads),
    )
