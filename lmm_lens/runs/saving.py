"""Gathers finished items and writes them in parts, often enough that a kill costs little."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from itertools import groupby

import torch

from ..errors import ScoreError
from .job import Done
from .part import in_words, layout
from .store import Store

MOST_ITEMS = 256
MOST_BYTES = 64 * 2**20


class Saving:
    """Finished items on their way into a store.

    Args:
        store: where they go.
        seconds: of work that go into a part; it ends with the item that passes them.
    """

    def __init__(self, store: Store, seconds: float) -> None:
        self.store, self.seconds = store, seconds
        self.waiting: dict[int, Done] = {}
        self.layout = store.layout
        self.n_bytes = 0
        self.since = time.monotonic()

    def add(self, done: Done) -> None:
        """Take a finished item, and write a part if it is time.

        Raises:
            ScoreError: its tensors are not like those before it, or the part could not be written.
        """
        found = layout(done.tensors)
        if self.layout is None:
            self.layout = found
        if found != self.layout:
            raise ScoreError(
                f"item {done.index} ({done.key!r}) has other tensors than the items before it\n"
                f"  before: {in_words(self.layout)}\n  now:    {in_words(found)}"
            )
        self.waiting[done.index] = done
        self.n_bytes += sum(tensor.nbytes for tensor in done.tensors.values())
        late = time.monotonic() - self.since >= self.seconds
        if late or len(self.waiting) >= MOST_ITEMS or self.n_bytes >= MOST_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what waits, one part for each run of neighbours. ScoreError: it could not be written."""
        # an interrupt may have come between the writing of a part and its leaving the queue
        todo = (self.waiting[index] for index in sorted(self.waiting) if index not in self.store)
        try:
            for block in _neighbours(todo):
                names = block[0].tensors
                tensors = {name: torch.stack([done.tensors[name] for done in block]) for name in names}
                notes = {done.index: done.note for done in block if done.note}
                self.store.write(block[0].index, [done.key for done in block], tensors, notes)
        except ScoreError:
            self._begin()  # they could not be kept: nobody is to try again
            raise
        self._begin()

    def _begin(self) -> None:
        self.waiting.clear()
        self.n_bytes = 0
        self.since = time.monotonic()


def _neighbours(done: Iterable[Done]) -> Iterator[list[Done]]:
    """Runs of items that follow one another."""
    for _, run in groupby(enumerate(done), key=lambda each: each[1].index - each[0]):
        yield [each for _, each in run]
