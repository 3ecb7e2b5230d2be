"""One changed forward, as a value."""

from __future__ import annotations

from dataclasses import dataclass

from ..interventions.base import Intervention
from .check import UnfitError
from .variants import Variant


@dataclass(frozen=True, eq=False)
class Change:
    """A changed forward, said twice: for the model itself, and for a replay.

    Attributes:
        intervention: the change in a forward of the whole batch.
        replayed: the same change as a replay of one of its rows makes it; where none can, why.
    """

    intervention: Intervention
    replayed: Variant | str

    @property
    def variant(self) -> Variant:
        """What a replay changes; UnfitError where none can make this change."""
        if isinstance(self.replayed, str):
            raise UnfitError(self.replayed)
        return self.replayed
