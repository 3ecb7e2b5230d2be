"""Scores of a whole data set as a formula of sums, so that they can be bootstrapped exactly and fast."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import ScoreError

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float64, Int64

Bounds = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Tally:
    """What each unit adds, and how the sums become scores.

    Attributes:
        counts: Float64[unit, column], of the units that are resampled: questions, pictures or pairs.
        formula: sums [..., column] to named scores [...]; NaN where one is not defined.
        strata: Int64[unit], units of one stratum are resampled among themselves; None for one stratum.
    """

    counts: Float64[np.ndarray, "unit column"]
    formula: Callable[[Any], Mapping[str, Any]]
    strata: Int64[np.ndarray, " unit"] | None = None

    def scores(self) -> dict[str, float]:
        """The scores of the data set itself."""
        return {name: float(value) for name, value in self.formula(self.counts.sum(0)).items()}


class Scores(Protocol):
    """What `binary_scores`, `mme_scores` and `mmvp_scores` give."""

    @property
    def tally(self) -> Tally: ...


def bootstrap(scores: Scores, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> dict[str, Bounds]:
    """Percentile bootstrap intervals of all scores of a data set.

    What is drawn with replacement is what counts together: questions for `binary_scores`, pictures within each subtask
    for `mme_scores` (the subtasks' sizes are part of the benchmark), pairs for `mmvp_scores`. A precision that is not
    defined in some resamples, as nothing was said yes to, has the interval of the others.

    Args:
        scores: from one of these.
        level: of the interval, between 0 and 1.
        resamples: draws.
        seed: of the draws.

    Returns:
        Name of each score to (low, high), both NaN for a score that is never defined.

    Raises:
        ScoreError: the level or the number of draws makes no sense.
    """
    import torch

    from ..statistics.resampling import percentiles, resampled_sums

    if not 0 < level < 1 or resamples < 1:
        raise ScoreError(f"expected a level between 0 and 1 and at least 1 resample, given {level} and {resamples}")
    tally = scores.tally
    counts, generator = torch.from_numpy(tally.counts), torch.Generator().manual_seed(seed)
    strata = torch.zeros(len(counts)) if tally.strata is None else torch.from_numpy(tally.strata)
    each = [resampled_sums(counts[strata == stratum], resamples, generator) for stratum in strata.unique()]
    named = tally.formula(torch.stack(each).sum(0).numpy())
    bounds = {name: percentiles(torch.from_numpy(values), level) for name, values in named.items()}
    return {name: (float(low), float(high)) for name, (low, high) in bounds.items()}


def ratio(part: Any, whole: Any) -> Any:
    """part / whole, NaN where the whole is 0."""
    import numpy as np

    part, whole = np.broadcast_arrays(np.asarray(part, float), np.asarray(whole, float))
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
