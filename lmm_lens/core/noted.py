"""What edits report of themselves: kept as it is, and added up when somebody asks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Reading = Callable[..., tuple[Tensor, ...]]
"""Makes (rows, moved, short), the last or the last two left out, of the numbers that an edit leaves; see
`TapContext.note`."""
MOST = 2**14  # numbers that are kept


def as_given(*numbers: Tensor) -> tuple[Tensor, ...]:
    """What an edit has worked out itself."""
    return numbers


class Noted:
    """What one edit did in one layer, pass by pass: a step adds nothing to its own work.

    Args:
        read: makes of the numbers of all passes what is added up.
    """

    held: list[tuple[Tensor, ...]]
    sums: list[tuple[Tensor, ...]]

    def __init__(self, read: Reading) -> None:
        self.read, self.held, self.n_held, self.sums = read, [], 0, []

    def add(self, numbers: tuple[Tensor, ...]) -> None:
        """Keep the numbers of a pass."""
        self.held.append(numbers)
        self.n_held += numbers[0].numel()
        if self.n_held > MOST:
            self._add_up()

    def totals(self) -> list[float]:
        """Of all passes the rows; and where it says, attention moved, and attention that could not be matched."""
        self._add_up()
        return [sum(float(each) for each in of_passes) for of_passes in zip(*self.sums, strict=True)]

    def _add_up(self) -> None:
        alike: dict[tuple[torch.Size, ...], list[tuple[Tensor, ...]]] = {}
        for numbers in self.held:  # those of steps are
            alike.setdefault(tuple(each.shape for each in numbers), []).append(numbers)
        for passes in alike.values():
            together = [torch.cat(each) if each[0].ndim else torch.stack(each) for each in zip(*passes, strict=True)]
            rows, *rest = self.read(*together)
            rows = rows > 0 if rows.is_floating_point() else rows
            self.sums.append((rows.sum(), *(each.sum() for each in rest)))
        self.held, self.n_held = [], 0
