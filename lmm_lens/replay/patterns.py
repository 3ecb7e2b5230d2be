"""Other attention patterns than the recorded one: what the heads give where they read the same values with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.attention import AttentionCall
from ..core.envoys import all_rows
from ..core.kernels import uniform
from ..core.rows import Chunk

if TYPE_CHECKING:
    from .recording import Recording

ROWS_AT_ONCE = 128  # [batch, head, query, key] never exists as a whole


@dataclass(frozen=True)
class EvenAttention:
    """Every head attends evenly to all keys that the row sees."""

    def rows(self, call: AttentionCall, layer: int, rows: Chunk) -> Float[Tensor, "batch head query key"]:
        """Some rows of it in one layer, beside a recorded call of that layer's attention."""
        precision = torch.float64 if call.value.dtype == torch.float64 else torch.float32
        return uniform(call.visible(rows)).to(precision)


@dataclass(frozen=True, eq=False)
class PatternOf:
    """Every head attends as in another recording, of a prompt with the same layout."""

    recording: Recording

    def rows(self, call: AttentionCall, layer: int, rows: Chunk) -> Float[Tensor, "batch head query key"]:
        """As in `EvenAttention.rows`."""
        return self.recording.attention(layer).probabilities(rows)


Pattern = EvenAttention | PatternOf
"""A pattern for every layer; a plain value until a replay reads with it."""


def z_under(pattern: Pattern, recording: Recording, layer: int, row: int) -> Float[Tensor, "position head d_head"]:
    """What the heads of a layer give under another pattern, in one row of the recorded batch.

    Raises:
        UnfitError: the layer has no pattern over the tokens of the sequence.
    """
    call = recording.attention(layer)
    batch, _, n_tokens, _ = call.query.shape
    rows = all_rows(batch, n_tokens, call.query.device)
    parts = (rows.part(start, start + ROWS_AT_ONCE) for start in range(0, n_tokens, ROWS_AT_ONCE))
    return torch.cat([call.read_values(pattern.rows(call, layer, part))[row] for part in parts])
