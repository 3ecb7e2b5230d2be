"""Many tests at once: p-values corrected for how many there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import ScoreError
from .checks import numbers


def holm(p: Any) -> Float[Tensor, "*unit"]:
    """Holm's adjusted p-values (1979): with those below .05 called significant, the chance of *any* error is below .05.

    `max_{j <= i} min(1, (m - j + 1) p_(j))` of the m sorted p-values; needs no independence.

    Args:
        p: of any shape; NaN is no test and stays NaN.

    Raises:
        ScoreError: numbers outside [0, 1].
    """
    return _corrected(p, _holm)


def benjamini_hochberg(p: Any) -> Float[Tensor, "*unit"]:
    """Benjamini and Hochberg's q-values (1995): of those below .05, at most .05 are errors on average.

    For tests that are independent or positively dependent, as heads tested on the same prompts mostly are.

    Args:
        p: of any shape; NaN is no test and stays NaN.

    Raises:
        ScoreError: numbers outside [0, 1].
    """
    return _corrected(p, _benjamini_hochberg)


def _holm(p: Float[Tensor, " test"]) -> Float[Tensor, " test"]:
    ordered, order = p.sort()
    factors = torch.arange(len(p), 0, -1, dtype=p.dtype)
    return torch.empty_like(p).index_copy(0, order, (ordered * factors).clamp(max=1).cummax(0).values)


def _benjamini_hochberg(p: Float[Tensor, " test"]) -> Float[Tensor, " test"]:
    from scipy.stats import false_discovery_control

    return torch.from_numpy(false_discovery_control(p.numpy(), method="bh"))


def _corrected(p: Any, correction: Callable[[Tensor], Tensor]) -> Tensor:
    """The p-values that are numbers, corrected, each in its place."""
    given = numbers(p, "p-values")
    found = given[~given.isnan()]
    wrong = found[(found < 0) | (found > 1)]
    if len(wrong):
        raise ScoreError(f"p-values lie between 0 and 1, given {float(wrong[0]):.4g}")
    return given.clone().masked_scatter(~given.isnan(), correction(found)) if len(found) else given
