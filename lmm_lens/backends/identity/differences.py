"""What differs between two identities, in words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .ingredients import RECORDED_AS

WORDS = {
    "model": "the model's class",
    "n_layers": "the number of layers",
    "n_heads": "the number of heads",
    "weights": "the weights",
    "dtype": "the data type",
    "modules": "the modules",
    "code": "the code",
    "hooks": "the hooks on the model",
    "adapters": "the adapters",
    "attention": "the attention implementation",
    "config": "the config",
    "generation_config": "the generation config",
    "processor": "the processor",
    "chat_template": "the chat template",
    "family": "the family",
}
AROUND = {"attention", "config", "generation_config", "processor", "chat_template", "hooks"}
"""Ingredients that differ where the model itself may be the same."""


DIGEST = re.compile(r"\b[0-9a-f]{32}\b")


def is_comparable(identity: Mapping[str, Any]) -> bool:
    """Whether an identity was recorded in the way of today."""
    return identity.get("recorded_as") == RECORDED_AS


def not_comparable(identity: Mapping[str, Any]) -> str:
    """Why an identity that is not of today's way cannot be compared, as a sentence about what it was made with."""
    if not identity:
        return "does not say which model it was made with"
    return "was made by another version of lmm-lens, which told models apart in another way, so its model is not known"


def shortened(value: Any) -> str:
    """An ingredient as a person compares it: eight digits of each digest."""
    return DIGEST.sub(lambda found: found[0][:8], str(value))


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """The ingredients in which two identities differ, those that tell most first."""
    names = [*WORDS, *sorted({*first, *second} - WORDS.keys())]
    return [name for name in names if first.get(name) != second.get(name)]


def in_words(names: Sequence[str]) -> str:
    """As in "the weights and the processor differ".

    >>> in_words(["weights", "config", "processor"])
    'the weights, the config and the processor differ'
    """
    words = [WORDS.get(name, name) for name in names]
    if len(words) > 1:
        words = [", ".join(words[:-1]) + " and " + words[-1]]
    is_one = len(names) == 1 and names[0] not in ("weights", "modules", "hooks", "adapters")
    return f"{words[0]} differ{'s' if is_one else ''}"
