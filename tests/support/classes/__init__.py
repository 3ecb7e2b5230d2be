"""Tiny models of classes beside the families with real processors, each from the defaults of its configuration.

A class is entered in the file of its kind with `@tiny`. Families with their real processors are in
`tests/support/families`.
"""

from tests.support.classes import grids, squares, tiles  # noqa: F401  (they enter theirs)

from .shrunk import empty
from .table import TINY

__all__ = ["TINY", "empty"]
