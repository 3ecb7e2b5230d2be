"""Claims of the two papers, each with its statistic, its interval and its control, and what came of it.

    holds           the statistic's interval, or its test, says so
    contradicted    it says the opposite
    open            it says neither: too few prompts, or no difference
    not tested      what the claim is about is not there, as a second data set, sinks, or right answers to lose

"Can be removed" needs a margin: what is lost is called nothing where its whole interval lies at or below five points of
accuracy. Where no answer changed, the bootstrap's interval has no width, so the interval counts as reaching to 3 / n at
least (the rule of three: the 95% bound of a rate of which n trials showed no case); 60 prompts are the fewest that can
show it. The margin, and that p has to be below .05, are ours.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

MARGIN = 0.05
"""Of accuracy; what may be lost with heads that are called dispensable."""
ALPHA = 0.05
VERDICTS = ("holds", "contradicted", "open", "not tested")


@dataclass(frozen=True)
class Claim:
    """One claim, tested on one data set.

    Attributes:
        claim: in a sentence.
        source: the paper.
        data: the data set, or two.
        verdict: one of `VERDICTS`.
        statistic: what was measured, in words.
        value, low, high: it, with its 95% interval.
        control: what it is set against, in words.
        control_value: that number.
        p: of the test against the control; NaN where the interval decides.
        n: prompts.
        note: what a reader must know.
    """

    claim: str
    source: str
    data: str
    verdict: str
    statistic: str
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    control: str = ""
    control_value: float = math.nan
    p: float = math.nan
    n: int = 0
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Its fields by name."""
        return asdict(self)


def by_test(p: float, points_our_way: bool, opposite: bool) -> str:
    """A verdict of a test.

    Args:
        p: of it.
        points_our_way: whether the difference has the claim's sign.
        opposite: whether its interval lies wholly on the other side.
    """
    if p < ALPHA and points_our_way:
        return "holds"
    return "contradicted" if opposite else "open"


def by_interval(low: float, high: float, bar: float) -> str:
    """Whether an interval lies above a number, below it, or over it; open where it does not exist."""
    if low > bar:
        return "holds"
    return "contradicted" if high < bar else "open"


def nothing_lost(low: float, high: float, clean: float, n: int) -> str:
    """Whether an accuracy was lost by less than the margin, of n prompts; `clean` is the accuracy there was to lose."""
    if not clean > MARGIN:
        return "not tested"
    if max(high, 3 / n) <= MARGIN:
        return "holds"
    return "contradicted" if low > 0 else "open"
