"""Which visual token each pixel that the model takes belongs to: found by the gradient, for every layout.

With the layers of the vision tower giving back their input, a visual token hears of its own pixels alone, and a few
backward passes through the projector tell all tokens apart (`lmm_lens.core.bits`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from ..backends.entering import entered, tower_off
from ..core.bits import told_apart
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
        told = told_apart(sums, list(leaves.values()))
    token = torch.cat([positions, torch.tensor([NOWHERE])])  # the last one, of what has no number
    return {name: token[number.masked_fill(mixed, -1)] for name, (number, mixed) in zip(leaves, told, strict=True)}
