"""Where NaN begins in a model, for the error that says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..core.taps import TapContext
from ..hooks.points import HOOK_POINTS, Read
from ..prompts.prompt import Prompt
from .plan import Plan

if TYPE_CHECKING:
    from .lens import Lens

LEAVING = "vision.resid_post"


def where_nan(lens: Lens, prompt: Prompt, plan: Plan) -> str:
    """Run once more, with the plan's interventions, to find where the first NaN stands.

    In the vision tower by what leaves its layers, where something was done there.
    """

    def is_nan(x: Tensor, context: TapContext) -> Tensor:
        rows = (
            context.valid[:, None, :, None]
            if context.scores
            else context.valid.reshape(*context.valid.shape, *[1] * (x.ndim - 2))
        )
        return x.isnan() & rows

    sites = [*HOOK_POINTS, *([LEAVING] if plan.needs_tower else [])]
    looking = Plan(plan.shape, plan.sinks_on, plan.interventions, [Read(at, reduce=is_nan) for at in sites])
    with lens._in_tower(looking, prompt) as tower:
        tapping = lens._backend.forward(prompt, looking.taps_beside(tower), last_only=True).tapping
    if tower is not None:
        for (site, layer), kept in sorted(tower.tapping.kept.items()):
            if any(bool(each.result.any()) for each in kept):
                return f"NaN in the vision tower's activations, first at {site} of its layer {layer}"
    order = list(HOOK_POINTS)
    for site, layer in sorted(tapping.kept, key=lambda at: (at[1], order.index(at[0]))):
        if any(bool(kept.result.any()) for kept in tapping.kept[site, layer]):
            cause = " under these interventions" if plan.interventions else ""
            return f"NaN in the model's activations{cause}, first at {site} of layer {layer}"
    return "NaN in the logits, but in no activation of the layers: look at the final norm and the output embedding"
