"""The same items answered under two conditions, right or wrong: could the difference be chance?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import ScoreError
from .checks import per_prompt


@dataclass(frozen=True)
class McNemar:
    """McNemar's exact test (1947): among the items on which two conditions differ, is either favoured?

    Attributes:
        only_a: items right under a alone.
        only_b: items right under b alone.
        n: items with a mark under both.
        p: two-sided and exact, of the binomial with 1/2; 1 where no item differs.
    """

    only_a: int
    only_b: int
    n: int
    p: float

    def __repr__(self) -> str:
        return f"McNemar (exact): {self.only_a} right under a alone, {self.only_b} under b alone, p {self.p:.3g}"


def mcnemar_test(a: Any, b: Any) -> McNemar:
    """Compare marks of the same items under two conditions.

    Args:
        a, b: [item], 1 where right and 0 where wrong; NaN where there is no mark, and the pair then counts nowhere.

    Raises:
        ScoreError: other numbers, two lengths, or nothing at all.
    """
    from scipy.stats import binomtest

    a, b = per_prompt(a, "a"), per_prompt(b, "b")
    if a.shape != b.shape or a.ndim != 1:
        raise ScoreError(
            f"a and b must be marks of the same items, [item], given {tuple(a.shape)} and {tuple(b.shape)}"
        )
    both = ~(a.isnan() | b.isnan())
    a, b = a[both], b[both]
    if bool(((a != 0) & (a != 1)).any() | ((b != 0) & (b != 1)).any()):
        raise ScoreError("McNemar's test is of right (1) or wrong (0)\n  of other numbers: sign_flip_test(a - b)")
    only_a, only_b = int((a > b).sum()), int((b > a).sum())
    p = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    return McNemar(only_a, only_b, len(a), float(p))
