"""Which visual token each pixel that the model takes belongs to: found by the gradient, for every layout.

With the layers of the vision tower giving back their input, a visual token hears of its own pixels alone. Tokens are
numbered in binary: the gradient of the sum of those whose number has a bit reaches the pixels whose token has it, so
2 log2 n backward passes through the projector tell the pixels of n tokens apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from ..backends.entering import entered, tower_off
from ..prompts.prompt import Prompt

if TYPE_CHECKING:
    from ..lens import Lens

NOWHERE = -1
"""In place of a position: the pixel reaches no visual token, or several at once."""


def pixels_of(prompt: Prompt) -> dict[str, Tensor]:
    """The tensors of a prompt that hold pixels, by the name of the input; no masks, sizes or grids."""
    return {
        name: value
        for name, value in prompt.inputs.items()
        if "pixel_values" in name and isinstance(value, Tensor) and value.is_floating_point()
    }


def places_of(lens: Lens, prompt: Prompt) -> dict[str, Int[Tensor, " *pixel"]]:
    """The position of the visual token that each pixel is of, `NOWHERE` for padding and for what is mixed.

    Args:
        lens: not on a server.
        prompt: of one row, with pictures.

    Returns:
        Like `pixels_of`, on the CPU.
    """
    leaves = {name: value.detach().clone().requires_grad_() for name, value in pixels_of(prompt).items()}
    visual = prompt.mask("visual")
    positions = visual[0].nonzero().flatten()
    with lens.nothing_applied(), tower_off(lens.adapter):
        x = entered(lens.adapter, {**prompt.inputs, **leaves}, grad=True)
        features = x[0, positions.to(x.device)]
        draw = torch.Generator().manual_seed(0)
        direction = torch.randn(features.shape[-1], generator=draw).to(features)  # no cancelling by chance
        sums = features @ direction
        numbers = torch.arange(1, len(sums) + 1)
        found = {name: torch.zeros(leaf.shape, dtype=torch.long) for name, leaf in leaves.items()}
        mixed = {name: torch.zeros(leaf.shape, dtype=torch.bool) for name, leaf in leaves.items()}
        for bit in range(len(sums).bit_length()):
            having = (numbers >> bit & 1).bool()
            with_bit, without = _reached(sums, having, leaves), _reached(sums, ~having, leaves)
            for name in leaves:
                found[name] |= with_bit[name].long() << bit
                mixed[name] |= with_bit[name] & without[name]
    token = torch.cat([torch.tensor([NOWHERE]), positions])
    return {name: token[numbers_.masked_fill(mixed[name], 0)] for name, numbers_ in found.items()}


def _reached(sums: Tensor, chosen: Tensor, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Which pixels the sum over some tokens depends on, on the CPU."""
    chosen = chosen.to(sums.device)
    if not sums.requires_grad or not bool(chosen.any()):
        return {name: torch.zeros(leaf.shape, dtype=torch.bool) for name, leaf in leaves.items()}
    slopes = torch.autograd.grad(
        sums[chosen].sum(), list(leaves.values()), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return {name: (slope != 0).cpu() for name, slope in zip(leaves, slopes, strict=True)}
