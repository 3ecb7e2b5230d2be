"""Which model runs: a digest of each ingredient of its answers, so that two of them say what differs.

The same model has the same identity in another process, on another device, divided among devices or processes, and
while a lens reads it; a change of any weight, setting or hook gives another. Weights are read each time, since an edit
through `.data` leaves no trace but in the values; on a GPU those whose bits have another sum. Of code and vocabularies
is kept what was worked out of the same objects, see `remembered` and `processors`.
"""

from .differences import AROUND, differences, in_words, is_comparable, not_comparable, shortened
from .ingredients import identity_of

__all__ = ["AROUND", "differences", "identity_of", "in_words", "is_comparable", "not_comparable", "shortened"]
