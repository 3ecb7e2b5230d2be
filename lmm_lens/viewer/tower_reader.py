"""Attention of groups of a vision tower's tokens, added up where the model is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core.spatial import distance_of_keys
from ..core.taps import Tap, TapContext
from ..hooks.points import ModelShape
from ..prompts.prompt import Prompt
from ..prompts.rows import bind_rows
from .tower_tokens import ALL_PATCHES, OTHERS

WEIGHTS, ENTROPY, DISTANCE = "tower view", "tower view entropy", "tower view distance"


@dataclass(frozen=True, eq=False)
class TowerViewReader:
    """The attention of groups of the tower's tokens, on visual tokens and on what is none; nothing else is kept.

    Attributes:
        heads: of each layer.
        groups: the tokens that each query is the mean over, by place; None for all patches, or by name the others.
        shares: by how much of what a token gets goes to each visual token.
        centres: where its tokens lie, in diagonals of the picture.
    """

    heads: Mapping[int, int]
    groups: Mapping[int, Bool[Tensor, "tower_row token"] | None]
    shares: Float[Tensor, "visual tower_row token"]
    centres: Float[Tensor, "tower_row token 2"]
    in_tower = True

    def others(self, prompt: Prompt) -> dict[str, Bool[Tensor, "tower_row token"]]:
        """The tokens of what the tower runs that are part of no visual token, by what they are; those there are."""
        left = self.shares.sum(0) == 0
        found = {}
        for name in OTHERS:
            found[name] = left & prompt.masks.get(name, torch.zeros_like(left)) if name != "elsewhere" else left
            left = left & ~found[name]
        return {name: mask for name, mask in found.items() if bool(mask.any())}

    def _means(self, prompt: Prompt) -> Float[Tensor, "group tower_row token"]:
        """By how much each token counts in each query."""
        placed = self.shares.sum(0) > 0
        masks = []
        for place, mask in self.groups.items():
            if mask is None:
                names = {OTHERS[name]: name for name in OTHERS} | {ALL_PATCHES: "image"}
                mask = prompt.masks.get(names[place], placed)
            masks.append(mask.float())
        means = torch.stack(masks)
        return means / means.sum((1, 2), keepdim=True)

    def taps(self, prompt: Prompt, shape: ModelShape) -> list[Tap]:
        """On what the tower runs."""
        means, centres, n_tokens = self._means(prompt), self.centres, prompt.n_tokens

        def add_up(pattern: Tensor, context: TapContext) -> Tensor:
            at = context.positions.to(pattern.device).clamp_min(0)
            weights = pattern.float() if pattern.dtype.itemsize < 4 else pattern
            mean = means.to(weights).gather(2, at.expand(len(means), -1, -1)) * context.valid.to(weights)
            on_tokens = torch.einsum("grq,rhqk->ghrk", mean, weights)
            context.add(WEIGHTS, torch.nn.functional.pad(on_tokens, (0, n_tokens - on_tokens.shape[-1])))
            entropy = -torch.special.xlogy(weights, weights).sum(-1)
            context.add(ENTROPY, torch.einsum("grq,rhq->gh", mean, entropy))
            far = distance_of_keys(weights, centres.to(weights), context.positions)
            known = (~far.isnan()).to(weights)
            both = torch.stack([far.nan_to_num(), known])
            context.add(DISTANCE, torch.einsum("grq,nrhq->ngh", mean, both))
            return pattern[..., :0]  # everything is in the sums

        every = bind_rows("all", prompt)
        return [Tap("pattern", layer, every, add_up, tuple(range(n))) for layer, n in self.heads.items()]
