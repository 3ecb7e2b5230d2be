"""A few families in every run of the suite, and the rest where there is time: `make long`."""

from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def quick(few: Sequence[str], names: Iterable[str]) -> list[Any]:
    """The names as parameters of a test, those that are not among the few marked long."""
    return [name if name in few else pytest.param(name, marks=pytest.mark.long) for name in names]
