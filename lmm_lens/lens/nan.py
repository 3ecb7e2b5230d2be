"""Where NaN begins in a model, for the error that says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..core.taps import Place
from ..hooks.points import HOOK_POINTS, Read
from ..interventions.base import Intervention
from ..prompts.prompt import Prompt
from .program import Program

if TYPE_CHECKING:
    from .lens import Lens


def where_nan(lens: Lens, prompt: Prompt, edits: tuple[Intervention, ...]) -> str:
    """Run once more to find where the first NaN stands."""

    def is_nan(x: Tensor, place: Place) -> Tensor:
        rows = (
            place.valid[:, None, :, None]
            if place.scores
            else place.valid.reshape(*place.valid.shape, *[1] * (x.ndim - 2))
        )
        return x.isnan() & rows

    program = Program(lens, edits, [Read(site, reduce=is_nan) for site in HOOK_POINTS])
    _, tapping = lens._backend.forward(prompt, program, last_only=True, grad=False)
    order = list(HOOK_POINTS)
    for site, layer in sorted(tapping.kept, key=lambda place: (place[1], order.index(place[0]))):
        if any(bool(found.any()) for _, _, found, _ in tapping.kept[site, layer]):
            cause = " under these interventions" if edits else ""
            return f"NaN in the model's activations{cause}, first at {site} of layer {layer}"
    return "NaN in the logits, but in no activation of the layers: look at the final norm and the output embedding"
