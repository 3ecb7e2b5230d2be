"""Conditions of a comparison: what is done to the model, and which pictures it is shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import ScoreError, unknown
from ..interventions.base import Intervention
from ..prompts.prompt import Prompt
from ..runs.checkpoint import fingerprint

PICTURES = {
    "own": "as they are",
    "blank": "plain ones of the same size and mean colour",
    "swapped": "another item's, the last before that has as many and others; of the first items, the next such",
}
"""Which pictures an item is shown."""

Making = Callable[[Prompt], Sequence[Intervention]]


@dataclass(frozen=True)
class Condition:
    """One condition of a comparison.

    Args:
        interventions: edits under which the model answers; or a function that makes them for each prompt, as patches
            need that take activations from another run.
        pictures: "own", "blank" or "swapped"; see `PICTURES`.

    Raises:
        ScoreError: no such pictures, or things that are no interventions.
    """

    interventions: tuple[Intervention, ...] | Making = ()
    pictures: str = "own"

    def __post_init__(self) -> None:
        if self.pictures not in PICTURES:
            raise ScoreError(unknown("choice of pictures", self.pictures, tuple(PICTURES)))
        if callable(self.interventions):
            return
        given = (self.interventions,) if isinstance(self.interventions, Intervention) else self.interventions
        if not isinstance(given, Sequence) or not all(isinstance(each, Intervention) for each in given):
            raise ScoreError(
                "a condition is interventions such as [VAR(...)], a function that makes them for a prompt, or a "
                f"Condition, given {self.interventions!r}"
            )
        object.__setattr__(self, "interventions", tuple(given))

    def on(self, prompt: Prompt) -> tuple[Intervention, ...]:
        """The interventions on a prompt."""
        return tuple(self.interventions(prompt)) if callable(self.interventions) else self.interventions

    def control_of(self, seed: int) -> Condition | None:
        """The same with every intervention replaced by its control; None where there is no intervention.

        Raises:
            InterventionError: one of them has no control.
            ScoreError: the interventions are made by a function.
        """
        if callable(self.interventions):
            raise ScoreError("interventions that a function makes have no control of their own: give it as a condition")
        if not self.interventions:
            return None
        return replace(self, interventions=tuple(each.control_of(seed) for each in self.interventions))

    @property
    def described(self) -> list[str]:
        """What tells it from others, for a run's manifest."""
        if callable(self.interventions):
            made = getattr(self.interventions, "__qualname__", type(self.interventions).__qualname__)
            return [f"made by {made}", self.pictures]
        return [*map(fingerprint, self.interventions), self.pictures]


def as_conditions(given: Any) -> dict[str, Condition]:
    """Conditions by name, in order.

    Raises:
        ScoreError: they are no mapping of names to conditions, or there are none.
    """
    if not isinstance(given, Mapping) or not given:
        raise ScoreError(f'conditions are named, as in {{"plain": [], "VAR": [VAR(...)]}}, given {given!r}')
    unnamed = [name for name in given if not isinstance(name, str) or not name.strip()]
    if unnamed:
        raise ScoreError(f"the name of a condition is a text, given {unnamed[0]!r}")
    return {name: each if isinstance(each, Condition) else Condition(each) for name, each in given.items()}


def with_controls(
    conditions: Mapping[str, Condition], n: int, seed: int
) -> tuple[dict[str, Condition], dict[str, str]]:
    """Conditions with `n` draws of a control for each that edits anything, and of which condition each draw is.

    Raises:
        ScoreError: controls that have nothing to control, or a condition that is called as one of them would be.
    """
    check_controls(n)
    if n and not any(condition.interventions for condition in conditions.values()):
        raise ScoreError(
            f"controls={n} were asked for, and no condition edits anything\n"
            "  leave controls out; blank and swapped pictures are controls themselves"
        )
    every, of = dict[str, Condition](), dict[str, str]()
    for name, condition in conditions.items():
        every[name] = condition
        for draw in range(n):
            control, drawn = condition.control_of(seed + draw), f"{name}, control {draw}"
            if drawn in conditions:
                raise ScoreError(f"a condition is called {drawn!r}, as a control would be: call it otherwise")
            if control is not None:
                every[drawn], of[drawn] = control, name
    return every, of


def check_controls(n: object) -> None:
    """ScoreError unless this is how many controls to draw."""
    if isinstance(n, bool) or not isinstance(n, int) or n < 0:
        raise ScoreError(f"controls is how many to draw, a whole number of at least 0, given {n!r}")
