"""The token sequence as the page writes it: words one by one, the tokens of a picture as one block."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from ..prompts.prompt import Prompt
from ..prompts.view import describe

GENERATED = "generated"


@dataclass(frozen=True, eq=False)
class TokenRow:
    """The tokens of one prompt row that a page shows: its real ones, and what was generated after them.

    Attributes:
        prompt, row: whose it is.
        generated: position to text, of the tokens that were generated and that later ones could attend to.
        n_positions: of the padded prompt with what was generated; the last dimension of its patterns.
        answer: the whole text that was generated; "" where nothing was.
    """

    prompt: Prompt
    row: int
    generated: dict[int, str]
    n_positions: int
    answer: str = ""

    @classmethod
    def of(cls, prompt: Prompt, row: int) -> TokenRow:
        """A prompt's alone."""
        return cls(prompt, row, {}, prompt.n_tokens)

    @property
    def positions(self) -> list[int]:
        """The position of each token shown; a key is an index into these."""
        return [*self.prompt.mask("all")[self.row].nonzero().flatten().tolist(), *self.generated]

    @property
    def keys(self) -> dict[int, int]:
        """Position to key."""
        return {position: key for key, position in enumerate(self.positions)}

    def name_of_query(self, position: int) -> str | None:
        """What a query is called that is more than a token; None for tokens."""
        return None

    @property
    def texts(self) -> list[str]:
        """The text of each token shown."""
        own = self.prompt.tokens[self.row]
        return [self.generated[p] if p in self.generated else own[p] for p in self.positions]

    @property
    def roles(self) -> list[str]:
        """The role of each, as in `lmm_lens.prompts.prompt.ROLES`; visual ones as "image" or "video", "generated"."""
        named = self.prompt.role_names(self.row)
        return [GENERATED if p in self.generated else named[p] for p in self.positions]

    def mask(self, name: str) -> Bool[Tensor, " position"]:
        """Which positions play a role; generated ones are text."""
        mask = torch.zeros(self.n_positions, dtype=torch.bool)
        mask[: self.prompt.n_tokens] = self.prompt.mask(name)[self.row]
        if name in ("all", "text"):
            mask[list(self.generated)] = True
        return mask

    def pieces(self) -> list[dict[str, Any]]:
        """Runs of tokens in order: a picture's with the markers inside it as one, other markers, and text.

        Each has `kind` ("visual", "marker" or "text"), `first` and `last`, the keys of its ends, and a `label` where it
        is visual.
        """
        spans = self.prompt.spans[self.row]
        block_of: dict[int, int] = {}
        for number, span in enumerate(spans):
            if span.kind != "marker":
                block_of.update((p, number) for p in range(span.positions[0], span.positions[-1] + 1))
        for number, span in enumerate(spans):  # a token's own span, where those of two pictures are interleaved
            if span.kind != "marker":
                block_of.update((position, number) for position in span.positions)
        marker = self.mask("marker")

        def block(position: int) -> tuple[str, int]:
            if position in block_of:
                return "visual", block_of[position]
            return ("marker" if bool(marker[position]) else "text"), -1

        pieces, key_of = [], self.keys
        for (kind, number), group in groupby(key_of, key=block):
            keys = [key_of[position] for position in group]
            label = describe(spans[number])[1:-1] if kind == "visual" else ""
            pieces.append({"kind": kind, "first": keys[0], "last": keys[-1], "label": label})
        return pieces
