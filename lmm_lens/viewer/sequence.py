"""The token sequence as the page writes it: words one by one, the tokens of a picture as one block."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from ..prompts.prompt import Prompt
from ..prompts.view import describe


def roles_of(prompt: Prompt, row: int) -> list[str]:
    """The role of each real token, as in `lmm_lens.prompts.prompt.ROLES`, visual ones as "image" or "video"."""
    named = prompt.role_names(row)
    return [named[position] for position in prompt.mask("all")[row].nonzero().flatten().tolist()]


def pieces_of(prompt: Prompt, row: int, key_of: dict[int, int]) -> list[dict[str, Any]]:
    """Runs of tokens in order: a picture's with the markers inside it as one, other markers, and text.

    Each has `kind` ("visual", "marker" or "text"), `first` and `last`, the indices of its ends among the real tokens,
    and a `label` where it is visual.
    """
    spans = prompt.spans[row]
    block_of: dict[int, int] = {}
    for number, span in enumerate(spans):
        if span.kind != "marker":
            block_of.update((p, number) for p in range(span.positions[0], span.positions[-1] + 1))
    for number, span in enumerate(spans):  # a token's own span, where those of two pictures are interleaved
        if span.kind != "marker":
            block_of.update((position, number) for position in span.positions)
    marker = prompt.mask("marker")[row]

    def block(position: int) -> tuple[str, int]:
        if position in block_of:
            return "visual", block_of[position]
        return ("marker" if bool(marker[position]) else "text"), -1

    pieces = []
    for (kind, number), group in groupby(key_of, key=block):
        keys = [key_of[position] for position in group]
        label = describe(spans[number])[1:-1] if kind == "visual" else ""
        pieces.append({"kind": kind, "first": keys[0], "last": keys[-1], "label": label})
    return pieces
