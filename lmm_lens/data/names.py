"""Data sets by name, for the command line and for configuration files."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ..errors import ScoreError, unknown
from .dataset import DataSet
from .from_mme import mme
from .from_mmvp import mmvp
from .from_pointqa import pointqa
from .from_pope import pope
from .from_shapes import shapes
from .from_table import table

KINDS: dict[str, Callable[..., DataSet]] = {
    "pope": pope,
    "mme": mme,
    "mmvp": mmvp,
    "pointqa": pointqa,
    "table": table,
    "shapes": shapes,
}


def named(kind: str, **options: Any) -> DataSet:
    """A data set by the name of its reader.

    Args:
        kind: "pope", "mme", "mmvp", "pointqa", "table" or "shapes".
        **options: the reader's arguments, all by name.

    Raises:
        ScoreError: there is no such reader or option, an option is missing, or as the reader says.
    """
    if kind not in KINDS:
        raise ScoreError(unknown("data set", kind, KINDS))
    parameters = inspect.signature(KINDS[kind]).parameters
    for option in options:
        if option not in parameters:
            raise ScoreError(unknown(f"option of {kind}", option, parameters))
    needed = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
    lacking = [name for name in needed if name not in options]
    if lacking:
        raise ScoreError(f"data set {kind!r} needs {' and '.join(lacking)}\n  its options: {', '.join(parameters)}")
    return KINDS[kind](**options)
