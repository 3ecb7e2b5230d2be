"""The mean output of every head over a data set, by the role of the token, for mean ablation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.taps import Tap, TapContext, TapFunction, role_of
from ..errors import InterventionError
from ..hooks.points import ModelShape
from ..hooks.runner import Runner
from ..prompts.prompt import ROLES, Prompt
from ..prompts.rows import bind_rows

ANSWER_TURN = ROLES.index("answer_turn")


@dataclass(frozen=True, eq=False)
class HeadMeans:
    """Mean z of every head by role.

    Attributes:
        values: by layer, Float[role, head, d_head], roles as in `lmm_lens.prompts.prompt.ROLES`.
        counts: how many tokens of each role were seen.
    """

    values: dict[int, Float[Tensor, "role head d_head"]]
    counts: Int[Tensor, " role"]

    def edit(self, layer: int, prompt: Prompt, shape: ModelShape) -> TapFunction:
        """The edit that puts the means into rows of a prompt; InterventionError for means of another model."""
        own = self.values.get(layer, torch.empty(0, 0, 0)).shape[1:]
        if own != (shape.n_heads[layer], shape.d_head[layer]):
            raise InterventionError(
                f"the means of layer {layer} are of {own[0]} heads of size {own[1]}, the model has "
                f"{shape.n_heads[layer]} of {shape.d_head[layer]}\n  compute head_means with this model"
            )
        roles, counts, values = prompt.roles, self.counts, self.values[layer]

        def put(z: Tensor, context: TapContext) -> Tensor:
            role = role_of(roles, context, ANSWER_TURN)
            missing = (counts[role[context.valid].cpu()] == 0).nonzero().flatten()
            if len(missing):
                name = ROLES[int(role[context.valid][missing[0]])]
                raise InterventionError(
                    f"the reference prompts of the means hold no token of role {name!r}, which this prompt has\n"
                    "  compute head_means over prompts of the same form"
                )
            means = values.to(z.device, z.dtype)[:, list(context.heads)]
            return means[role]  # batch query head d_head

        return put


@dataclass(frozen=True)
class _Sums:
    """Reads z and adds it up where the model is, so that nothing of the prompts is kept."""

    def taps(self, prompt: Prompt, shape: ModelShape) -> list[Tap]:
        roles, rows = prompt.roles, bind_rows("all", prompt)

        def add(z: Tensor, context: TapContext) -> Tensor:
            role = role_of(roles, context, ANSWER_TURN)[context.valid]
            total = torch.zeros(len(ROLES), *z.shape[2:], dtype=torch.float64, device=z.device)
            context.add("z", total.index_add_(0, role, z[context.valid].double()))
            return z

        return [Tap("z", layer, rows, add) for layer in range(shape.n_layers) if shape.n_heads[layer]]


def head_means(lens: Runner, prompts: Prompt | Iterable[Prompt]) -> HeadMeans:
    """Mean z of every head over the tokens of each role.

    Args:
        lens: the model.
        prompts: a prompt or several; a data set whose form is that of the prompts to be ablated.

    Raises:
        InterventionError: no prompts.
    """
    sums: dict[int, Tensor] = {}
    counts = torch.zeros(len(ROLES), dtype=torch.long)
    for prompt in [prompts] if isinstance(prompts, Prompt) else prompts:
        for (_, layer), total in lens.run(prompt, read=[_Sums()], logits="last").sums.items():
            sums[layer] = sums.get(layer, 0) + total.cpu()
        counts += torch.bincount(prompt.roles[prompt.mask("all")], minlength=len(ROLES))
    if not sums:
        raise InterventionError("head_means was given no prompts")
    scale = counts.clamp_min(1)[:, None, None]
    return HeadMeans({layer: (total / scale).float() for layer, total in sums.items()}, counts)
