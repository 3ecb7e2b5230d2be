"""Which model runs: a digest of each ingredient of its answers, so that two of them say what differs.

The same model has the same identity in another process, on another device, divided among devices or processes, and
while a lens reads it; a change of any weight, setting or hook gives another. Nothing is kept from one question to the
next, since an edit through `.data` leaves no trace but in the values.
"""

from .differences import AROUND, differences, in_words, is_comparable, not_comparable, shortened
from .ingredients import identity_of

__all__ = ["AROUND", "differences", "identity_of", "in_words", "is_comparable", "not_comparable", "shortened"]
