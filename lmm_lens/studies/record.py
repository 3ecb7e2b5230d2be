"""A model's study as one small sealed JSON file: what an atlas is made of, and what others can merge with theirs.

It holds what the numbers depend on (the model, its weights' digest and data type, versions, data, seeds, settings) and
the numbers: maps of heads, tables, claims. Numbers that do not exist are null. The checksum is of everything.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import ScoreError
from ..runs import disk
from ..runs.manifest import current_versions

if TYPE_CHECKING:
    from ..lens import Lens

FORMAT = "lmm-lens study 1"
STUDIES = ("heads", "sinks")
FILE = "study.json"
DIGITS = 6
"""Significant digits of every number."""


@dataclass(frozen=True)
class Record:
    """One model's study.

    Attributes:
        content: everything, of JSON types; see `described` for what says which model it is.
    """

    content: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What the study calls the model."""
        return str(self.content["name"])

    @property
    def study(self) -> str:
        """Which study: one of `STUDIES`."""
        return str(self.content["study"])

    def __getitem__(self, key: str) -> Any:
        return self.content[key]

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write it into a folder, sealed, whole or not at all."""
        path = Path(folder) / FILE
        with disk.told(f"the study of {self.name!r} could not be written to {str(folder)!r}"):
            disk.write_json(path, self.content)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Record:
        """Read one back, from its file or from the folder that it lies in.

        Raises:
            ScoreError: there is none, or it is not what was written.
        """
        file = Path(path) / FILE if Path(path).is_dir() else Path(path)
        if not file.is_file():
            raise ScoreError(f"there is no study in {str(path)!r}: expected a file {FILE}")
        try:
            with disk.told(f"the study {str(path)!r} cannot be read"):
                content = disk.read_json(file)
        except disk.DamagedError as error:
            raise ScoreError(
                f"the study in {str(path)!r} is damaged: {error}\n  run the study again: what is finished is not lost"
            ) from error
        if content.get("format") != FORMAT or content.get("study") not in STUDIES:
            said = content.get("format")
            raise ScoreError(f"{str(path)!r} holds no study of lmm-lens: its format is {said!r}, expected {FORMAT!r}")
        return cls(content)

    def __repr__(self) -> str:
        claims = self.content["claims"]
        held = sum(claim["verdict"] == "holds" for claim in claims)
        return f"Record of the {self.study} study of {self.name}: {held} of {len(claims)} claims hold"


def described(lens: Lens, name: str) -> dict[str, Any]:
    """What a record says of its model: under what name, of which family and size, which weights, and, where a
    `with lens.apply(...)` stands around the study, what was put into every run of it.
    """
    identity = lens.identity
    n_parameters = sum(p.numel() for p in lens.model.parameters())
    config = lens.adapter.config
    return {
        "name": name,
        "model": {
            "id": _shown(str(getattr(lens.model, "name_or_path", "") or getattr(config, "_name_or_path", "")) or name),
            "revision": getattr(config, "_commit_hash", None),
            "class": identity["model"],
            "family": lens.adapter.family,
            "n_parameters": n_parameters,
            "n_layers": lens.n_layers,
            "n_heads": lens.n_heads,
            "dtype": identity["dtype"],
            "weights": identity["weights"],
            "backend": lens.backend,
            **({"applied": [repr(each) for each in lens.applied]} if lens.applied else {}),
        },
        "versions": current_versions(),
    }


def _shown(name: str) -> str:
    """A Hub name as it is; of a folder its own name alone: where it lies is nobody's business."""
    return Path(name).name if Path(name).is_dir() or Path(name).is_absolute() else name


def plain(value: Any) -> Any:
    """Of JSON types: tensors as lists, numbers to six digits, what is no number as None."""
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value


def check_name(what: str, name: object) -> None:
    """ScoreError for a name that could not be a folder's beside a record."""
    bad = not isinstance(name, str) or not name.strip() or set(name) & set('/\\:*?"<>|\0') or name.startswith(".")
    if bad or name == FILE:
        raise ScoreError(f"the name of a {what} becomes a folder's, so it has no slash or colon in it, given {name!r}")
