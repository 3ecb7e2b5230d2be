"""Which rows of a sequence have to be computed again: those from the first change on, if no row before sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .recording import LayerCall


@dataclass(frozen=True)
class Window:
    """The rows of one prompt row that a replay computes.

    Attributes:
        row: which row of the batch.
        first: its first real token.
        start: the first row that is computed; the keys and values of first .. start - 1 are the recorded ones.
        stop: one behind its last prompt token.
    """

    row: int
    first: int
    start: int
    stop: int

    @property
    def rows(self) -> slice:
        """The rows that are computed."""
        return slice(self.start, self.stop)

    @property
    def prefix(self) -> slice:
        """The rows that are not."""
        return slice(self.first, self.start)


class ReusablePrefix:
    """Where the sequence of a prompt row may be cut, so that no row before the cut sees a key behind it.

    Args:
        calls: of all layers.
        row: of the batch.
        first, stop: its real tokens.
        crossing: the layers whose keys are not the sequence.
    """

    def __init__(self, calls: Sequence[LayerCall], row: int, first: int, stop: int, crossing: Sequence[bool]) -> None:
        self.row, self.first, self.stop = row, first, stop
        self.reason = ""
        allowed = torch.ones(stop + 1, dtype=torch.bool)
        if any(call.attention is None for call in calls):
            allowed[first + 1 :] = False
            self.reason = "layers without attention carry a state from row to row"
        seen: set[int] = set()
        for call, crosses in zip(calls, crossing, strict=True):
            mask = call.attention.mask if call.attention is not None else None
            if crosses or mask is None or id(mask) in seen:
                continue
            seen.add(id(mask))
            furthest = _furthest(mask[min(row, len(mask) - 1)], first, stop)
            behind = furthest.cummax(0).values  # of all rows up to each
            cut = torch.ones(stop + 1, dtype=torch.bool)
            cut[first + 1 : stop] = behind[:-1] < torch.arange(first + 1, stop)
            if bool((allowed & ~cut).any()) and not self.reason:
                self.reason = "some tokens see later ones"
            allowed &= cut
        self.allowed = allowed

    def before(self, start: int) -> Window:
        """The rows to compute, for a first change at `start`."""
        start = max(start, self.first)
        while not bool(self.allowed[start]):
            start -= 1
        return Window(self.row, self.first, start, self.stop)


def _furthest(mask: Tensor, first: int, stop: int) -> Tensor:
    """The last key that each real row sees in any head; mask [head, query, key], True or 0 where visible."""
    part = mask[:, first:stop, :stop]
    visible = (part if part.dtype == torch.bool else part > torch.finfo(part.dtype).min / 2).any(0).cpu()
    keys = torch.arange(visible.shape[1])
    return torch.where(visible, keys, -1).amax(1)
