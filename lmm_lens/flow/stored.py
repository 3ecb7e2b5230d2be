"""What a run of information flow has finished: numbers of the prompts that count, and why the others do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..data.problems import Problems
from ..errors import ScoreError
from ..replay.ways import Way
from ..runs import Store
from ..runs.texts import text_of

OTHERWISE = "answered otherwise"
"""The note on prompts that the model answers otherwise; what it said stands behind it."""


def found_in(store: Store, names: Sequence[str]) -> dict[str, Any]:
    """The entries of an `InformationFlow` that a store holds.

    Args:
        store: of a run, finished or not.
        names: of the tensors.

    Raises:
        ScoreError: no prompt is answered rightly.
    """
    ids = [key.rpartition("\t")[0] for part in store.parts() for key in part.keys]
    numbers = [index for at in store.ranges for index in at]
    notes = store.notes()
    left_out, unusable = {}, {}
    for name, index in zip(ids, numbers, strict=True):
        reason, _, said = notes.get(index, "").partition("\t")
        if reason == OTHERWISE:
            left_out[name] = said
        elif reason:
            unusable[name] = notes[index]
    used = [index not in notes for index in numbers]
    if not any(used):
        told = f"none of {len(ids)} prompts is answered rightly" if ids else "no prompts were given"
        bad = f"\n  {Problems.of_notes(unusable)}" if unusable else ""
        raise ScoreError(f"{told}, so there is no answer to lose\n  check the answers, and the prompts' form{bad}")
    tensors = {name: rows[used] for name, rows in store.tensors().items()}
    return {
        **{name: tensors[name] for name in names},
        "ids": tuple(name for name, is_used in zip(ids, used, strict=True) if is_used),
        "left_out": left_out,
        "unusable": unusable,
        "how": _how(tensors),
    }


def _how(tensors: Mapping[str, Tensor]) -> str:
    """How the knocked-out forwards were computed, in words."""
    counts = tensors["ways"].sum(0).tolist()
    parts = [f"{counts[way]} {way.words}" for way in Way if way >= 0 and counts[way]]
    reasons = [reason for reason in map(text_of, tensors["reason"]) if reason]
    said = "; ".join(parts) + (f" ({reasons[-1]})" if reasons else "")
    n_halved = int(tensors["is_halved"].sum())
    more = f"; {n_halved} of them in smaller batches, since memory ran out, so that last bits may differ"
    return said + more * bool(n_halved)
