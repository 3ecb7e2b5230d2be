"""Which of many cases run with every suite, and which with `make long` alone."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def quick(names: Iterable[str], chosen: Collection[str]) -> list[Any]:
    """Parameters of a test: the chosen ones as they are, the others marked as long."""
    names = list(names)
    assert set(chosen) <= set(names)
    return [name if name in chosen else pytest.param(name, marks=pytest.mark.long) for name in names]
