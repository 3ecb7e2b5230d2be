"""Is a replay what the model itself computes?"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDING = {torch.float64: 2e-6, torch.float32: 2e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
"""How far two orders of summation may put logits apart, as a share of the largest of them. In fp64 what eager attention
makes of it, which takes its softmax in fp32 even there."""


class UnfitError(Exception):
    """This model, or this prompt, cannot be replayed exactly; the text says why. Never shown to users as an error."""


def agree(one: Tensor, other: Tensor) -> bool:
    """Whether logits agree up to rounding in the model's precision."""
    if one.shape != other.shape:
        return False
    dtype = other.dtype
    scale = other.abs().max().clamp_min(1).double()
    return bool((one.double() - other.double()).abs().max() <= ROUNDING.get(dtype, 2e-4) * scale)
