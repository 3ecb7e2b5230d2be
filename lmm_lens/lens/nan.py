"""Where NaN begins in a model, for the error that says so."""

from __future__ import annotations

from torch import Tensor

from ..backends.base import Backend
from ..core.taps import TapContext
from ..hooks.points import HOOK_POINTS, Read
from ..prompts.prompt import Prompt
from .plan import Plan


def where_nan(backend: Backend, prompt: Prompt, plan: Plan) -> str:
    """Run once more, with the plan's interventions, to find where the first NaN stands."""

    def is_nan(x: Tensor, context: TapContext) -> Tensor:
        rows = (
            context.valid[:, None, :, None]
            if context.scores
            else context.valid.reshape(*context.valid.shape, *[1] * (x.ndim - 2))
        )
        return x.isnan() & rows

    looking = Plan(plan.shape, plan.sinks_on, plan.interventions, [Read(at, reduce=is_nan) for at in HOOK_POINTS])
    tapping = backend.forward(prompt, looking.taps, last_only=True).tapping
    order = list(HOOK_POINTS)
    for site, layer in sorted(tapping.kept, key=lambda at: (at[1], order.index(at[0]))):
        if any(bool(kept.result.any()) for kept in tapping.kept[site, layer]):
            cause = " under these interventions" if plan.interventions else ""
            return f"NaN in the model's activations{cause}, first at {site} of layer {layer}"
    return "NaN in the logits, but in no activation of the layers: look at the final norm and the output embedding"
