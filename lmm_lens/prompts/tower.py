"""What a vision tower runs: its rows and tokens, as a prompt, so that reads and interventions bind to it as to any."""

from __future__ import annotations

from typing import Any

import torch

from .prompt import Prompt

TOWER_MASKS = {
    "all": "every token of the tower",
    "image": "patches",
    "class": "class tokens",
    "register": "register tokens",
}
"""Name and meaning of every mask of a tower's tokens."""


def tower_prompt(
    n_rows: int,
    n_tokens: int,
    n_class: int = 0,
    n_registers: int = 0,
    class_behind: bool = False,
    knows_places: bool = True,
) -> Prompt:
    """A pass of a vision tower.

    Args:
        n_rows: pictures, tiles or frames; 1 where the tower packs all of them into one sequence.
        n_tokens: of each row.
        n_class, n_registers: tokens of each row that are no patches, before the patches.
        class_behind: whether they stand behind.
        knows_places: whether any of that is known; else there is the mask "all" alone.

    Returns:
        A prompt without inputs, whose masks are those of `TOWER_MASKS`.
    """
    everything = torch.ones(n_rows, n_tokens, dtype=torch.bool)
    masks: dict[str, Any] = {"all": everything}
    if knows_places:
        place = torch.arange(n_tokens - 1, -1, -1) if class_behind else torch.arange(n_tokens)
        masks["class"] = (place < n_class).expand(n_rows, -1).clone()
        masks["register"] = ((place >= n_class) & (place < n_class + n_registers)).expand(n_rows, -1).clone()
        masks["image"] = (place >= n_class + n_registers).expand(n_rows, -1).clone()
        masks["visual"] = masks["image"]
    nothing: tuple[Any, ...] = ((),) * n_rows
    return Prompt(inputs={}, spans=nothing, images=nothing, tokens=nothing, masks=masks)
