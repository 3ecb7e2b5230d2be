"""What every statistic asks of its input, with the errors that say so."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ScoreError, unknown

ALTERNATIVES = ("two-sided", "greater", "less")


def numbers(values: Any, what: str) -> Tensor:
    """Values as fp64 on the CPU.

    Raises:
        ScoreError: they are no numbers, there are none, or some are infinite.
    """
    try:
        # numpy reads a list of numbers as fp64, torch as fp32
        found = torch.as_tensor(values if isinstance(values, Tensor) else np.asarray(values)).detach().cpu().double()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ScoreError(f"{what} must be a tensor or an array of numbers, given {type(values).__name__}") from error
    if not found.numel():
        raise ScoreError(f"{what} must not be empty, given the shape {tuple(found.shape)}")
    if bool(found.isinf().any()):
        raise ScoreError(f"{what} must be finite, {int(found.isinf().sum())} of {found.numel()} are infinite")
    return found


def per_prompt(values: Any, what: str) -> Tensor:
    """Values [prompt, *unit] as fp64 on the CPU; ScoreError as for `numbers`, and for a single number."""
    found = numbers(values, what)
    if not found.ndim:
        raise ScoreError(f"{what} must be [prompt, ...], one number a prompt, given the single number {float(found)}")
    return found


def check_alternative(alternative: str) -> None:
    """ScoreError for a direction that does not exist."""
    if alternative not in ALTERNATIVES:
        raise ScoreError(unknown("alternative", alternative, ALTERNATIVES))


def check_level(level: float) -> None:
    """ScoreError for a level of confidence that is none."""
    if not 0 < level < 1:
        raise ScoreError(f"the level of an interval lies between 0 and 1, given {level}")


def check_count(n: int, what: str) -> None:
    """ScoreError for a number of draws that is none."""
    if n < 1:
        raise ScoreError(f"{what} must be at least 1, given {n}")
