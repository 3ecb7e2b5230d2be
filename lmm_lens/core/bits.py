"""Which of many numbers each entry of a tensor has a part in, told by few backward passes.

The numbers are counted in binary. The gradient of the sum of those whose count has a bit reaches the entries whose
number has it; with another pass for those that have it not, 2 log2 n passes tell n numbers apart, and which entries
have a part in several.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Told = tuple[Int[Tensor, " *entry"], Bool[Tensor, " *entry"]]


def told_apart(numbers: Float[Tensor, " number"], leaves: Sequence[Tensor]) -> list[Told]:
    """Of each entry of each leaf, on the CPU: the number it has a part in, -1 where in none; and whether in several.

    Args:
        numbers: with their graph, which is kept.
        leaves: of that graph.
    """
    counts = torch.arange(1, len(numbers) + 1)
    found = [torch.zeros(leaf.shape, dtype=torch.long) for leaf in leaves]
    several = [torch.zeros(leaf.shape, dtype=torch.bool) for leaf in leaves]
    for bit in range(len(numbers).bit_length()):
        having = (counts >> bit & 1).bool()
        reached = zip(_reached(numbers, having, leaves), _reached(numbers, ~having, leaves), strict=True)
        for place, (with_bit, without) in enumerate(reached):
            found[place] |= with_bit.long() << bit
            several[place] |= with_bit & without
    return [(each - 1, mixed) for each, mixed in zip(found, several, strict=True)]


def _reached(numbers: Tensor, chosen: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    """Which entries the sum of the chosen numbers depends on, on the CPU."""
    chosen = chosen.to(numbers.device)
    if not numbers.requires_grad or not bool(chosen.any()):
        return [torch.zeros(leaf.shape, dtype=torch.bool) for leaf in leaves]
    slopes = torch.autograd.grad(
        numbers[chosen].sum(), leaves, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return [(slope != 0).cpu() for slope in slopes]
