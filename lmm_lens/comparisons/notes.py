"""What a reader of a comparison must know before believing its tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .comparison import Comparison

BOUNDS = {0.0: "a floor: all are wrong", 1.0: "a ceiling: all are right"}
LEAST_SHORT = 0.01


def notes_on(compared: Comparison) -> tuple[str, ...]:
    """In sentences."""
    return (*_bounds(compared), *_nothing_edited(compared), *_unmatched(compared))


def _bounds(compared: Comparison) -> list[str]:
    values = compared.values
    for bound, words in BOUNDS.items():
        if bool((values == bound).all()):
            return [f"{words} under every condition, so nothing tells them apart"]
    if len(compared.names) > 1 and bool((values == values[:, :1]).all()):
        return ["every item has the same value under every condition"]
    return []


def _nothing_edited(compared: Comparison) -> list[str]:
    told = []
    for name, interventions in ((each[0], each[1:-1]) for each in compared.about["conditions"]):
        untouched = int((compared.edits[:, compared.column(name)] == 0).sum())
        if interventions and untouched and name not in compared.control_of:
            told.append(f"{name} edited nothing on {untouched} of {len(compared.ids)} items")
    return told


def _unmatched(compared: Comparison) -> list[str]:
    """Of controls: attention that they could not move, and edits that are more or fewer."""
    told = []
    for name in dict.fromkeys(compared.control_of.values()):
        draws = [compared.column(drawn) for drawn, of in compared.control_of.items() if of == name]
        moved, short = compared.moved[:, draws].sum(), compared.short[:, draws].sum()
        if float(short) > LEAST_SHORT * float(moved + short):
            share = float(short / (moved + short))
            told.append(f"the controls of {name} moved {share:.0%} less attention than it: random tokens hold less")
        edits = compared.edits[:, draws].double().mean(1)
        own = compared.edits[:, compared.column(name)].double()
        ratio = float(edits.sum() / own.sum()) if bool(own.any()) else 1.0
        if abs(ratio - 1) > LEAST_SHORT:
            told.append(f"the controls of {name} edited {ratio:.2f} times as many rows as it")
    return told
