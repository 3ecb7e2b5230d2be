"""What two runs do that must come to the same on a server: an edit, and two numbers of every token."""

from __future__ import annotations

import torch
from torch import Tensor

from .taps import TapContext


def reverse(stream: Tensor, context: TapContext) -> Tensor:
    """The dimensions of a residual stream [batch, query, d_model] in reverse: norms and what is added see a change."""
    return stream.flip(-1)


def look(stream: Tensor, context: TapContext) -> Tensor:
    """Nothing that would matter, [batch, query, 1]."""
    return stream[:, :, :1]


def numbers(stream: Tensor, context: TapContext) -> Tensor:
    """A projection of a residual stream and its length, [batch, query, 2] in fp32."""
    wide = stream.float()
    direction = torch.arange(wide.shape[-1], device=wide.device).cos()
    return torch.stack([wide @ direction, wide.norm(dim=-1)], dim=-1)
