"""One prompt under way: at which hook points taps act, and what they leave to each other from pass to pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .rows import JoinedRows
from .taps import RunState, Tap


class Stop:
    """A hook point of a layer at which taps act.

    Attributes:
        taps: in the order in which they act.
        heads: that any of them is given; None for all.
        columns: for each of them, where its heads lie among these; None where they are all of them.
        adds: whether there is one tap alone, which adds to the pattern.
        apart: whether every tap acts on each head apart, and all on the same heads.
        hides: the keys that this one hides, if that is all it does.
        growth: of this one, if it has all heads.
        known_as: names their rows.
    """

    def __init__(self, taps: list[Tap]) -> None:
        self.taps = taps
        everything = any(tap.heads is None for tap in taps)
        self.heads = None if everything else tuple(sorted({head for tap in taps for head in tap.heads or ()}))
        self.columns = [None if tap.heads == self.heads else _columns(tap.heads, self.heads) for tap in taps]
        self.adds = len(taps) == 1 and taps[0].adds
        self.apart = all(tap.apart and (self.adds or tap.heads == self.heads) for tap in taps)
        self.hides = taps[0].hides if self.adds else None
        self.growth = taps[0].growth if self.adds and self.heads is None else None
        self.known_as = tuple(id(tap.rows) for tap in taps)


class Course:
    """One prompt under way: its taps, and what they leave to each other from pass to pass.

    Attributes:
        n_rows: members of its batch.
        taps: by (hook point, layer), in the order in which they act.
        stops: where these act, by the same.
        state: what taps leave to each other.
        ended: which batch rows have ended, and are only padded while others go on; None for none.
    """

    taps: dict[tuple[str, int], list[Tap]]
    stops: dict[tuple[str, int], Stop]
    ended: Tensor | None
    joined: dict[tuple[Any, ...], JoinedRows | None]

    def __init__(self, n_rows: int, taps: Sequence[Tap]) -> None:
        self.n_rows, self.taps, self.state, self.ended = n_rows, {}, RunState(), None
        self.joined, self.joined_at = {}, (-1, -1)  # rows of the taps, and of which pass
        for tap in sorted(taps, key=lambda tap: not tap.edits):  # reads see what edits left
            self.taps.setdefault((tap.site, tap.layer), []).append(tap)
        self.stops = {at: Stop(own) for at, own in self.taps.items()}

    def note_ends(self, ids: Tensor, ends: Tensor) -> None:
        """Of several batch rows, those whose last token, Int[batch, token], ends them are only padded from here on."""
        if self.n_rows > 1 and len(ends) and len(ids) == self.n_rows:
            self.end(torch.isin(ids[:, -1].cpu(), ends))

    def end(self, rows: Tensor) -> None:
        """Note which batch rows have ended by now, Bool[batch], on the CPU; what has ended does not begin again."""
        ended = rows if self.ended is None else rows | self.ended
        if bool(ended.any()):
            self.ended = ended


def _columns(wanted: tuple[int, ...] | None, present: tuple[int, ...] | None) -> list[int]:
    """Where the wanted heads lie among the present ones."""
    return [head if present is None else present.index(head) for head in wanted or ()]
