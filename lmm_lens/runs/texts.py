"""Short texts as tensors: a run keeps the same tensors of every item, and texts have any length."""

from __future__ import annotations

import torch
from jaxtyping import UInt8
from torch import Tensor

N_BYTES = 256
"""What is kept of a text."""


def bytes_of(text: str) -> UInt8[Tensor, " byte"]:
    """The first 256 bytes of a text in UTF-8, zeros behind it."""
    kept = torch.zeros(N_BYTES, dtype=torch.uint8)
    said = text.encode("utf-8", "replace")[:N_BYTES]
    kept[: len(said)] = torch.tensor(list(said), dtype=torch.uint8)
    return kept


def text_of(kept: UInt8[Tensor, " byte"]) -> str:
    """What `bytes_of` kept, as text; a letter that was cut through is left out."""
    return bytes(kept.tolist()).rstrip(b"\0").decode("utf-8", "ignore")
