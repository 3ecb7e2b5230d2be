"""The ways in which changed forwards are computed; all of them are exact."""

from __future__ import annotations

from enum import IntEnum

HALVED = 8
"""Added to the number of a way where memory had run out, and batches were smaller: last bits may differ."""


class Way(IntEnum):
    """How the changed forwards of one prompt were computed; its number is what files hold.

    Attributes:
        words: the same for people.
    """

    words: str

    EACH = 0, "one forward each"
    RESUMED = 1, "resumed from the residual stream of the first changed layer"
    REUSED = 2, "the rows from the first changed one on; keys and values before them are reused"
    SINGLE = 3, "single rows, all in one batch; keys and values before them are reused"

    LEFT_OUT = -1, "left out"

    def __new__(cls, number: int, words: str) -> Way:
        """A number with its words."""
        way = int.__new__(cls, number)
        way._value_, way.words = number, words
        return way
