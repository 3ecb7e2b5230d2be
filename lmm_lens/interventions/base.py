"""What an intervention is: a frozen value that turns into taps once prompt and model are known."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

from ..errors import InterventionError
from ..prompt import Prompt
from ..taps import ModelShape, Tap


class Intervention(ABC):
    """A reusable edit. It holds no state: a run's state lives in the run, so it never reaches the next."""

    why_nothing = "its rows were not reached"
    """Why a run may end without an edit; part of the warning that says so."""

    @abstractmethod
    def taps(self, prompt: Prompt, shape: ModelShape) -> list[Tap]:
        """The taps of this intervention on a prompt and a model of this shape.

        Raises:
            HookError: a layer, head or row scope that does not exist.
            InterventionError: nothing would be touched.
        """


def bind_all(interventions: tuple[Intervention, ...], prompt: Prompt, shape: ModelShape) -> list[Tap]:
    """The taps of several interventions, in order: where two edit the same rows, the second edits what the first left.

    Raises:
        InterventionError: one of them is no intervention, or its row scope selects nothing of this prompt.
    """
    taps: list[Tap] = []
    for index, intervention in enumerate(interventions):
        if not isinstance(intervention, Intervention):
            raise InterventionError(
                f"expected interventions such as AblateHeads(heads), given {intervention!r} at place {index}"
            )
        own = intervention.taps(prompt, shape)
        if not any(tap.edits and tap.rows.reaches() for tap in own):
            scopes = ", ".join(sorted({repr(tap.rows.label) for tap in own if tap.edits}))
            raise InterventionError(
                f"{intervention} touches nothing: rows {scopes} select no token of this prompt\n"
                f"  the prompt is {str(prompt).splitlines()[0]}"
            )
        taps += [replace(tap, owner=index) for tap in own]
    return taps
