"""Activation patching in the vision tower: from which of its layers, patches and heads on does the answer hang?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..answers.contrast import AnswersLike, contrast, logit_difference
from ..errors import ScoreError
from ..hooks.heads import VISION, check_layer
from ..hooks.points import TOWER, Read
from ..hooks.results import Run
from ..interventions import PatchHeads, PatchPattern, PatchResidual
from ..interventions.base import Intervention
from ..interventions.patch import check_same_layout
from ..prompts.prompt import Prompt
from ..prompts.rows import RowsLike, bind_rows
from .scores import PatchScores
from .task import shown_progress
from .units import check_units

if TYPE_CHECKING:
    from ..lens import Lens


@dataclass(frozen=True, eq=False)
class TowerUnits:
    """What is patched at once in the tower.

    Attributes:
        by: "span" (all patches; class tokens; registers), "patch" (one token of the tower) or "head".
        names: of the units.
        masks: which tokens each has; heads share one mask.
        label: the row scope of heads, empty for others.
    """

    by: str
    names: tuple[str, ...]
    masks: Bool[Tensor, "unit tower_row token"]
    label: str = ""

    @classmethod
    def of(cls, by: str, tower: Prompt, n_heads: int, rows: RowsLike) -> TowerUnits:
        """The units of what the tower runs.

        Raises:
            ScoreError: it is not known which of its tokens are patches.
        """
        if by == "head":
            scope = bind_rows(rows, tower)
            return cls(by, tuple(map(str, range(n_heads))), scope.prompt[None], scope.label)
        if "image" not in tower.masks:
            raise ScoreError("it is not known which tokens of this vision tower are patches: patch by head")
        if by == "span":
            named = {name: tower.mask(name) for name in ("image", "class", "register")}
            found = {name: mask for name, mask in named.items() if bool(mask.any())}
            return cls(by, tuple(found), torch.stack(list(found.values())))
        where = tower.mask("image").nonzero()
        masks = torch.zeros(len(where), tower.n_rows, tower.n_tokens, dtype=torch.bool)
        masks[torch.arange(len(where)), where[:, 0], where[:, 1]] = True
        names = tuple(f"{row}:{token}" if tower.n_rows > 1 else str(token) for row, token in where.tolist())
        return cls(by, names, masks)

    def patch(self, site: str, layer: int, unit: int, clean: Run) -> Intervention:
        """The intervention that puts a unit's clean activation in."""
        rows = self.masks[0 if self.by == "head" else unit]
        if self.by == "head":
            kind = PatchPattern if site == "pattern" else PatchHeads
            return kind([(layer, unit)], clean, rows, part=VISION)
        return PatchResidual([layer], clean, rows, site, part=VISION)


def tower_patching(
    lens: Lens,
    clean: Prompt,
    corrupt: Prompt,
    site: str,
    by: str,
    *,
    layers: Iterable[int] | None = None,
    rows: RowsLike = "all",
    answers: AnswersLike | None = None,
    progress: bool = False,
) -> PatchScores:
    """`activation_patching` at a hook point of the vision tower: one forward for each layer and unit.

    Args:
        lens: the model.
        clean, corrupt: prompts of one row with pictures of the same sizes.
        site: "vision.resid_pre", "vision.attn_out", "vision.mlp_out", "vision.resid_post" (by span or patch),
            "vision.z" or "vision.pattern" (by head).
        by: "span" (all patches, class tokens, registers), "patch" (a token of the tower) or "head".
        layers: of the tower; by default those that the features come through.
        rows: of heads: "all", "image", "class", positions or Bool[tower_row, token].
        answers, progress: as in `activation_patching`.

    Raises:
        ScoreError: site and units that do not go together, batches, answers that tell nothing apart.
        InterventionError: pictures of other sizes.
    """
    inner = site.removeprefix(TOWER)
    check_units(inner, by)
    if inner == "z" and by != "head":
        raise ScoreError(f"in the vision tower z is patched by head, given by {by!r}: take vision.attn_out")
    for prompt in (clean, corrupt):
        if not isinstance(prompt, Prompt) or prompt.n_rows != 1:
            raise ScoreError("patching in the vision tower takes a clean and a corrupt prompt of one row each")
    check_same_layout(clean, corrupt)
    chosen = _chosen(lens, layers)
    source = lens.run(clean, read=[Read(site, chosen)], logits="last")
    below = lens.run(corrupt, read=[Read(site, chosen[:1])], logits="last")
    assert source.tower is not None
    pair = contrast(lens, source.logits[:, 0], below.logits[:, 0], answers)
    units = TowerUnits.of(by, source.tower, lens.vision.n_heads, rows)
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


def _chosen(lens: Lens, layers: Iterable[int] | None) -> Sequence[int]:
    """The given layers of the tower, each once, or all that the features come through."""
    if layers is None:
        return list(range(lens.vision.n_used))
    chosen = list(dict.fromkeys(check_layer(int(layer), lens.vision.n_layers) for layer in layers))
    if not chosen:
        raise ScoreError("no layers were given")
    return chosen
