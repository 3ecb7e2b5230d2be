"""Data sets by name, for the command line and for configuration files."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ..errors import ScoreError, unknown
from .dataset import DataSet
from .from_captions import coco_captions, mm_vet
from .from_choices import cv_bench, mmbench, q_bench, scienceqa, seed_bench
from .from_emoji import emoji
from .from_lmms_eval import lmms_eval
from .from_mme import mme
from .from_mmvp import mmvp
from .from_pointqa import pointqa
from .from_pope import pope
from .from_shapes import shapes
from .from_table import table
from .from_vqa import gqa, textvqa, vizwiz, vqav2

KINDS: dict[str, Callable[..., DataSet]] = {
    "pope": pope,
    "mme": mme,
    "mmvp": mmvp,
    "pointqa": pointqa,
    "mmbench": mmbench,
    "seed_bench": seed_bench,
    "q_bench": q_bench,
    "cv_bench": cv_bench,
    "scienceqa": scienceqa,
    "vqav2": vqav2,
    "vizwiz": vizwiz,
    "textvqa": textvqa,
    "gqa": gqa,
    "coco_captions": coco_captions,
    "mm_vet": mm_vet,
    "lmms_eval": lmms_eval,
    "table": table,
    "shapes": shapes,
    "emoji": emoji,
}


def named(kind: str, **options: Any) -> DataSet:
    """A data set by the name of its reader.

    Args:
        kind: one of `KINDS`, as "pope", "gqa", "table".
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
