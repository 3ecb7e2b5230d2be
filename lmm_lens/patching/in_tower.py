"""Activation patching in the vision tower: from which of its layers, patches and heads on does the answer hang?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..answers.contrast import AnswersLike, contrast, logit_difference
from ..hooks.points import Read
from ..prompts.prompt import Prompt
from ..prompts.rows import RowsLike
from .scores import PatchScores
from .task import shown_progress
from .tower_units import TowerUnits, checked_tower_pair, chosen_tower_layers
from .units import GroupsLike

if TYPE_CHECKING:
    from ..lens import Lens


def tower_patching(
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
    progress: bool = False,
) -> PatchScores:
    """`activation_patching` at a hook point of the vision tower: one forward for each layer and unit.

    Args:
        lens: the model.
        clean, corrupt: prompts of one row with pictures of the same sizes.
        site: "vision.resid_pre", "vision.attn_out", "vision.mlp_out", "vision.resid_post" (by span or patch),
            "vision.z" or "vision.pattern" (by head).
        by: "span" (all patches, class tokens, registers, regions), "patch" (a token of the tower) or "head".
        layers: of the tower; by default those that the features come through.
        rows: of heads: "all", "image", "class", positions or Bool[tower_row, token].
        groups: with by="span", regions by name: Bool[tower_row, token], as `lens.vision.patches(prompt).in_box(box)`
            gives, or positions of each row of the tower.
        answers, progress: as in `activation_patching`.

    Raises:
        ScoreError: site and units that do not go together, batches, answers that tell nothing apart.
        InterventionError: pictures of other sizes.
    """
    inner = checked_tower_pair(clean, corrupt, site, by)
    chosen = chosen_tower_layers(lens, layers)
    source = lens.run(clean, read=[Read(site, chosen)], logits="last")
    below = lens.run(corrupt, read=[Read(site, chosen[:1])], logits="last")
    assert source.tower is not None
    pair = contrast(lens, source.logits[:, 0], below.logits[:, 0], answers)
    units = TowerUnits.of(by, source.tower, lens.vision.n_heads, rows, groups)
    patched = torch.full((1, len(chosen), len(units.names)), torch.nan, dtype=torch.float64)
    with shown_progress(patched.numel(), progress) as advance:
        for place, layer in enumerate(chosen):
            for unit in range(lens.vision.shape.n_heads[layer] if by == "head" else len(units.names)):
                run = lens.run(corrupt, [units.patch(inner, layer, unit, source)], logits="last")
                patched[:, place, unit] = logit_difference(run.logits[:, 0], pair.ids).cpu()
                advance()
    effects: Float[Tensor, "pair layer unit"] = pair.normalized(patched - pair.corrupt_ld[:, None, None])
    return PatchScores.of_pairs(
        pair,
        effects,
        chosen,
        site=site,
        by=by,
        rows=units.label,
        method="patching",
        units=units.names,
        model=lens.identity,
        how="one forward for each layer and unit: the vision tower is not replayed",
        shape=(lens.vision.n_layers, lens.vision.n_heads),
    )
