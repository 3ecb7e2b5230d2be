"""Some finished items that follow one another: their keys and their numbers, in one safetensors file."""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from ..errors import ScoreError
from . import disk, files

KIND = "run part"

Layout = dict[str, str]
"""Name to data type and shape of one item's tensor, in words: two items fit together if theirs are equal."""


@dataclass(frozen=True, eq=False)
class RunPart:
    """Finished items in a row.

    Attributes:
        first: the index of the first one.
        keys: what tells each item from others, [n].
        tensors: name to numbers, [n, ...] each.
        notes: why items that could not be used were left out, by index; their numbers only fill the place.

    Raises:
        ScoreError: no item, no tensor, or a tensor with another number of rows than there are keys.
    """

    first: int
    keys: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    notes: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows = {name: tuple(tensor.shape[:1]) for name, tensor in self.tensors.items()}
        if not self.keys or not rows or any(n != (len(self.keys),) for n in rows.values()):
            raise ScoreError(
                f"a part of a run needs a row of each tensor for each of its {len(self.keys)} keys, given "
                f"{', '.join(f'{name} {tuple(tensor.shape)}' for name, tensor in self.tensors.items()) or 'none'}"
            )

    @property
    def range(self) -> range:
        return range(self.first, self.first + len(self.keys))

    @property
    def layout(self) -> Layout:
        return layout({name: tensor[0] for name, tensor in self.tensors.items()})

    def to_bytes(self) -> bytes:
        """The file."""
        about = {"first": self.first, "keys": self.keys, "notes": sorted(self.notes.items())}
        return files.packed(KIND, self.tensors, about)

    def cut(self, at: builtins.range) -> RunPart:
        """Some of its items that follow one another."""
        rows = slice(at.start - self.first, at.stop - self.first)
        tensors = {name: tensor[rows] for name, tensor in self.tensors.items()}
        return RunPart(at.start, self.keys[rows], tensors, {i: note for i, note in self.notes.items() if i in at})


def read(path: Path) -> RunPart:
    """A part from its file.

    Raises:
        DamagedError: the file is not what was written.
    """
    try:
        tensors, about = files.read(path, KIND, None, ("first", "keys", "notes"))
        with files.understood(path, "parts of a run"):
            return RunPart(int(about["first"]), tuple(about["keys"]), tensors, dict(about["notes"]))
    except ScoreError as error:
        raise disk.DamagedError(str(error).splitlines()[0]) from error


def file_name(at: range) -> str:
    """Where a part lies: sorted by name, files are in the order of the items."""
    return f"{at.start:09d}-{at.stop - 1:09d}.safetensors"


def layout(tensors: Mapping[str, Tensor]) -> Layout:
    """Of the tensors of one item.

    >>> import torch
    >>> layout({"effect": torch.zeros(6, 8)})
    {'effect': 'float32 [6, 8]'}
    """
    return {name: f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}" for name, x in sorted(tensors.items())}


def in_words(found: Layout) -> str:
    return ", ".join(f"{name} {what}" for name, what in found.items()) or "nothing"
