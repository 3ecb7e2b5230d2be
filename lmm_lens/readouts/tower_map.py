"""Where heads of the vision tower look, laid over the picture.

A token of the tower lies where the visual tokens lie that it is part of (`Lens.vision.patches`): what it gets goes to
them in equal shares. What class and register tokens get lies nowhere, and neither does padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core.taps import Tap, TapContext
from ..errors import HookError, PromptError
from ..hooks.heads import HeadSet
from ..hooks.points import ModelShape
from ..interventions.base import Intervention
from ..prompts.prompt import Prompt
from ..prompts.rows import RowsLike, bind_rows

if TYPE_CHECKING:
    from ..lens import Lens
    from ..lens.patch_map import PatchMap

WEIGHTS = "tower attention map"
SCOPES = ("image", "class", "register", "all")


@dataclass(frozen=True, eq=False)
class TowerMapReader:
    """The mean attention of some tokens of the tower, by head; nothing of the pattern is kept.

    Attributes:
        heads: of each layer.
        rows: a scope of the tower, or a mask of its tokens.
    """

    heads: Mapping[int, Sequence[int]]
    rows: str | Bool[Tensor, "tower_row token"]
    in_tower = True

    def taps(self, prompt: Prompt, shape: ModelShape) -> list[Tap]:
        """On what the tower runs; HookError where it has no such tokens."""
        rows = bind_rows(self.rows, prompt)
        n, n_tokens = int(rows.prompt.sum()), prompt.n_tokens
        if not n:
            raise HookError(f"this vision tower has no {self.rows} tokens, so none of them looks anywhere")

        def add_up(pattern: Tensor, context: TapContext) -> Tensor:
            total = (pattern * context.valid[:, None, :, None].to(pattern)).sum(2) / n
            context.add(WEIGHTS, torch.nn.functional.pad(total, (0, n_tokens - total.shape[-1])))
            return pattern[..., :0]  # everything is in the sums

        return [Tap("pattern", layer, rows, add_up, tuple(heads)) for layer, heads in self.heads.items()]


def tower_weights(
    lens: Lens, prompt: Prompt, heads: HeadSet, rows: RowsLike | None, interventions: Sequence[Intervention]
) -> tuple[str, Float[Tensor, "head position"]]:
    """What queries are called, and how much of their attention lies on each visual token of the decoder, by head.

    Args:
        lens: the model.
        prompt: of one row.
        heads: of the tower.
        rows: a scope of the tower, or positions of visual tokens, whose patches are meant; "image" by default.
        interventions: edits under which the attention is read.

    Raises:
        PromptError: a batch.
        HookError: no such rows, or visual tokens that mix all patches, and so lie nowhere.
    """
    patches = placed_patches(lens, prompt)
    visual = prompt.mask("visual")[0]
    chosen: str | Tensor
    if rows is None or isinstance(rows, str):
        name = chosen = rows or "image"
    else:
        wanted = bind_rows(rows, prompt)
        if bool((wanted.prompt[0] & ~visual).any()):
            raise HookError(
                f"{wanted.label} are not all visual tokens, which alone are made of patches\n"
                f"  give positions of visual tokens, or a scope of the tower: {', '.join(SCOPES)}"
            )
        made = patches.made_of[wanted.prompt[0][visual]].any(0)
        name, chosen = f"patches of {_told(prompt, wanted.prompt[0])}", made
    reader = TowerMapReader(heads.by_layer(), chosen)
    sums = lens.run(prompt, interventions, [reader], logits="last").sums
    by_layer = heads.by_layer()
    found = {
        (layer, head): sums[WEIGHTS, layer][:, index].float().cpu()
        for layer, own in by_layer.items()
        for index, head in enumerate(own)
    }
    on_tower = torch.stack([found[head] for head in heads]).flatten(1)  # head, token of any row
    share = shares_of(patches).flatten(1)
    weights = torch.zeros(len(heads), prompt.n_tokens)
    weights[:, visual] = on_tower @ share.T
    return name, weights


def placed_patches(lens: Lens, prompt: Prompt) -> PatchMap:
    """Which tokens of the tower each visual token of one prompt is made of, where that gives them a place.

    Raises:
        PromptError: a batch.
        HookError: visual tokens that mix all patches, and so lie nowhere.
        ModelError: no tower with heads.
    """
    if prompt.n_rows != 1:
        raise PromptError(f"a map of the vision tower is of one prompt, given a batch of {prompt.n_rows} rows")
    patches = lens.vision.patches(prompt)
    if patches.is_mixed:
        raise HookError(
            f"each visual token of {type(lens.model).__name__} is made of all patches of its tower, so its patches lie "
            "under none of them\n  read vision.pattern for its numbers"
        )
    return patches


def shares_of(patches: PatchMap) -> Float[Tensor, "visual tower_row token"]:
    """How much of what a token of the tower gets goes to each visual token, in equal shares."""
    made_of = patches.made_of.float()
    return made_of / made_of.sum(0).clamp_min(1)


def _told(prompt: Prompt, chosen: Bool[Tensor, " position"]) -> str:
    positions = chosen.nonzero().flatten().tolist()
    return f"{len(positions)} visual tokens" if len(positions) > 1 else f"token {positions[0]}"
