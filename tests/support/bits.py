"""Tensors of random bits."""

import math

import torch


def of_bits(shape, dtype, seed=0) -> torch.Tensor:
    """A tensor of random bits, NaN and infinity among them."""
    size = torch.empty((), dtype=dtype).element_size()
    high = 2 if dtype == torch.bool else 256
    bits = torch.randint(high, (math.prod(shape) * size,), dtype=torch.uint8, generator=torch.manual_seed(seed))
    return bits.view(dtype).reshape(shape)
