"""What edits report of themselves: kept as it is, and added up when somebody asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

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
        read: makes of the numbers of passes what is added up.

    Attributes:
        held: the numbers of each pass.
        sums: those of earlier passes, added up where they are.
    """

    held: list[tuple[Tensor, ...]]
    sums: list[list[Tensor]]

    def __init__(self, read: Reading) -> None:
        self.read, self.held, self.n_held, self.sums = read, [], 0, []

    def add(self, numbers: tuple[Tensor, ...]) -> None:
        """Keep the numbers of a pass."""
        self.held.append(numbers)
        self.n_held += numbers[0].numel()
        if self.n_held > MOST:
            for _, found in _sums([self]):
                self.sums.append([part.sum() for part in found])
            self.held, self.n_held = [], 0


def totals(noted: Sequence[Noted]) -> list[list[float]]:
    """Of each, over all passes: rows; and where it says, attention moved, and attention that could not be matched."""
    found: list[list[list[float]]] = [[[float(part) for part in sums] for sums in each.sums] for each in noted]
    at = {id(each): index for index, each in enumerate(noted)}
    for owners, parts in _sums(noted):
        rows, *rest = parts
        several = [rows.tolist(), *(torch.stack(rest).tolist() if rest else [])]  # a device is asked once or twice
        for owner, *of_pass in zip(owners, *several, strict=True):
            found[at[id(owner)]].append(of_pass)
    return [[sum(part) for part in zip(*of_passes, strict=True)] for of_passes in found]


def _sums(noted: Sequence[Noted]) -> Iterator[tuple[list[Noted], list[Tensor]]]:
    """Whose passes they are, and what there is to add up in each: passes with numbers alike, as those of steps and of
    layers are, go through `read` together.
    """
    alike: dict[tuple[object, ...], list[tuple[Noted, tuple[Tensor, ...]]]] = {}
    for each in noted:
        for numbers in each.held:
            form = tuple((part.shape, part.dtype, part.device) for part in numbers)
            alike.setdefault((each.read, form), []).append((each, numbers))
    for passes in alike.values():
        columns = zip(*(numbers for _, numbers in passes), strict=True)
        rows, *rest = passes[0][0].read(*(torch.cat(part) if part[0].ndim else torch.stack(part) for part in columns))
        rows = rows > 0 if rows.is_floating_point() else rows
        yield [owner for owner, _ in passes], [part.reshape(len(passes), -1).sum(1) for part in (rows, *rest)]
