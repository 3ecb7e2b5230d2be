"""The tokens of a page of the vision tower: the visual tokens its patches are part of, and what is no part of any."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from ..prompts.view import describe
from .sequence import TokenRow

ALL_PATCHES = -1
"""The place of the mean over all patches among queries; it is no key."""
OTHERS = {"class": -2, "register": -3, "elsewhere": -4}
"""The place of what is no visual token among queries and keys, which else are positions of the prompt."""
NAMES = {
    ALL_PATCHES: "all patches",
    OTHERS["class"]: "class token",
    OTHERS["register"]: "registers",
    OTHERS["elsewhere"]: "no visual token",
}


@dataclass(frozen=True, eq=False)
class TowerTokens(TokenRow):
    """Visual tokens of one prompt, each standing for the patches it is made of, and the others that are there.

    Attributes:
        others: which of `OTHERS` there are.
    """

    others: tuple[str, ...] = ()

    @property
    def positions(self) -> list[int]:
        """The position of each visual token, and below 0 the place of each other one."""
        visual: list[int] = self.prompt.mask("visual")[self.row].nonzero().flatten().tolist()
        return [*visual, *(OTHERS[name] for name in self.others)]

    @property
    def texts(self) -> list[str]:
        """The text of each."""
        own = self.prompt.tokens[self.row]
        return [own[position] if position >= 0 else NAMES[position] for position in self.positions]

    @property
    def roles(self) -> list[str]:
        """The role of each: "image", "video", or that of the other ones."""
        named = self.prompt.role_names(self.row)
        visual = self.positions[: len(self.positions) - len(self.others)]
        return [*(named[position] for position in visual), *self.others]

    def name_of_query(self, position: int) -> str | None:
        """What is no visual token by name."""
        return NAMES.get(position)

    def mask(self, name: str) -> Bool[Tensor, " key"]:
        """Over keys, not positions: "all", "visual", or one of the others."""
        masks = {"all": True, "visual": False, **dict.fromkeys(OTHERS, False)}
        mask = torch.full((len(self.positions),), masks[name])
        if name == "visual":
            mask[: len(self.positions) - len(self.others)] = True
        elif name in self.others:
            mask[self.keys[OTHERS[name]]] = True
        return mask

    def pieces(self) -> list[dict[str, Any]]:
        """The tokens of each picture as one, the others by themselves."""
        spans = self.prompt.spans[self.row]
        owner = {p: number for number, span in enumerate(spans) if span.kind != "marker" for p in span.positions}
        pieces, key_of = [], self.keys
        for number, group in groupby(key_of, key=lambda position: owner.get(position, -1)):
            keys = [key_of[position] for position in group]
            kind, label = ("visual", describe(spans[number])[1:-1]) if number >= 0 else ("text", "")
            pieces.append({"kind": kind, "first": keys[0], "last": keys[-1], "label": label})
        return pieces
