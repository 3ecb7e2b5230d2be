"""Masks over the keys of a pass, made once for all layers that hold the same keys, and grown by a column a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Grown:
    """A mask over positions, [batch, position], to which passes add columns; put together when somebody asks.

    Attributes:
        newest: the columns that were added last.
        length: how many there are.
    """

    def __init__(self, mask: Tensor) -> None:
        self._parts, self.newest, self.length = [mask], mask, mask.shape[1]

    def add(self, columns: Tensor) -> None:
        """Add those of the next positions."""
        self._parts.append(columns)
        self.newest = columns
        self.length += columns.shape[1]

    @property
    def mask(self) -> Tensor:
        """All of it, Bool[batch, position]."""
        if len(self._parts) > 1:
            self._parts = [torch.cat(self._parts, 1)]
        return self._parts[0]


class _Made:
    """A mask, or what was made of one, and the tokens that were seen then.

    Its source is kept as long as it is, so that nothing else is known by the same id.
    """

    def __init__(self, source: Any, n_seen: int, mask: Any) -> None:
        self.source, self.n_seen, self.mask = source, n_seen, mask


class Columns:
    """What layers of one pass ask for alike.

    A layer holds all tokens that were seen, the last of them (a sliding window), or room for more (a static cache). In
    the first case a mask of the step before is this step's but for its last column.
    """

    made: dict[tuple[Any, ...], _Made]

    def __init__(self) -> None:
        self.n_seen, self.made = -1, {}

    def get(
        self,
        what: tuple[Any, ...],
        source: Any,
        n_keys: int,
        n_seen: int,
        make: Callable[[], Any],
        column: Callable[[], float] | None = None,
    ) -> Any:
        """A mask [..., key], or what is made of one, kept from the layer that asked first.

        Args:
            what: which one.
            source: what it is made of, which `what` may name by its id.
            n_keys: that the layer holds.
            n_seen: tokens that were seen.
            make: makes it anew.
            column: of the token that was seen last; None where it cannot be grown.
        """
        if n_seen != self.n_seen:  # what the pass before did not ask for is let go
            self.made = {what: made for what, made in self.made.items() if made.n_seen == self.n_seen}
            self.n_seen = n_seen
        at = (*what, 0 if n_keys == n_seen else n_keys)
        known = self.made.get(at)
        if known is not None and known.n_seen == n_seen:
            return known.mask
        if known is not None and column is not None and n_keys == n_seen == known.n_seen + 1:
            mask = torch.nn.functional.pad(known.mask, (0, 1), value=column())
        else:
            mask = make()
        self.made[at] = _Made(source, n_seen, mask)
        return mask
