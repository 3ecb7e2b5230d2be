"""What is patched at once in the vision tower: its patches, a region of them, one of them, or one head."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool
from torch import Tensor

from ..errors import ScoreError
from ..hooks.heads import VISION, check_layer
from ..hooks.points import TOWER
from ..hooks.results import Run
from ..interventions import PatchHeads, PatchPattern, PatchResidual
from ..interventions.base import Intervention
from ..interventions.patch import check_same_layout
from ..prompts.prompt import Prompt
from ..prompts.rows import RowsLike, bind_rows
from .units import GroupsLike, check_units, group_mask

if TYPE_CHECKING:
    from ..lens import Lens

AS_IN = "  as in groups={'object': lens.vision.patches(prompt).in_box(box)}"


@dataclass(frozen=True, eq=False)
class TowerUnits:
    """What is patched at once in the tower.

    Attributes:
        by: "span" (all patches; class tokens; registers; regions by name), "patch" (one token of the tower) or "head".
        names: of the units.
        masks: which tokens each has; heads share one mask.
        label: the row scope of heads, empty for others.
    """

    by: str
    names: tuple[str, ...]
    masks: Bool[Tensor, "unit tower_row token"]
    label: str = ""

    @classmethod
    def of(cls, by: str, tower: Prompt, n_heads: int, rows: RowsLike, groups: GroupsLike | None = None) -> TowerUnits:
        """The units of what the tower runs.

        Raises:
            ScoreError: it is not known which of its tokens are patches; rows or groups that this kind of unit does not
                take, groups that are not tokens of the tower, or rows that select none.
        """
        if groups is not None and by != "span":
            raise ScoreError(f"groups={list(groups)} is for by='span', given by={by!r}")
        if by == "head":
            scope = bind_rows(rows, tower)
            if not bool(scope.prompt.any()):
                raise ScoreError(f"rows {scope.label!r} select no token of the vision tower")
            return cls(by, tuple(map(str, range(n_heads))), scope.prompt[None], scope.label)
        if not (isinstance(rows, str) and rows == "all"):
            raise ScoreError(f"rows={rows!r} is for by='head': by {by}, the {by} itself is the rows")
        if "image" not in tower.masks and not (by == "span" and groups):
            raise ScoreError("it is not known which tokens of this vision tower are patches: patch by head, or a group")
        if by == "span":
            found = {name: tower.masks[name] for name in ("image", "class", "register") if name in tower.masks}
            found = {name: mask for name, mask in found.items() if bool(mask.any())}
            for name, given in (groups or {}).items():
                if name in found:
                    raise ScoreError(f"a span is called {name!r} already: {', '.join(found)}\n  give it another name")
                found[name] = group_mask(name, given, tower, AS_IN)
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


def checked_tower_pair(clean: Prompt, corrupt: Prompt, site: str, by: str) -> str:
    """The hook point without the part of the model.

    Raises:
        ScoreError: it and the units do not go together, or the prompts are none, or batches.
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
    return inner


def chosen_tower_layers(lens: Lens, layers: Iterable[int] | None) -> list[int]:
    """The given layers of the tower, each once, or all that the features come through."""
    if layers is None:
        return list(range(lens.vision.n_used))
    chosen = list(dict.fromkeys(check_layer(int(layer), lens.vision.n_layers) for layer in layers))
    if not chosen:
        raise ScoreError("no layers were given")
    return chosen
