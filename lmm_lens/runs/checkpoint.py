"""What of a long experiment is finished, so that one that was interrupted goes on where it was.

Without a file the finished parts stay with the lens for as long as it lives: after a lost connection the same call
continues. With a file they outlive the process.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..backends.identity import differences, in_words, is_comparable
from ..backends.identity.values import digest_of_value
from ..errors import ScoreError
from ..prompts.prompt import Prompt
from ..prompts.tensors import tensors_in
from . import files


class Identified(Protocol):
    """A lens, as far as a checkpoint knows one."""

    @property
    def identity(self) -> dict[str, Any]:
        """What tells its model from another."""
        ...

    @property
    def applied(self) -> tuple[Any, ...]:
        """What an enclosing `apply` puts into every run."""
        ...


_UNFINISHED: WeakKeyDictionary[Identified, dict[str, dict[str, Tensor]]] = WeakKeyDictionary()
"""The parts of each lens's unfinished experiments, for as long as the lens lives."""


def unfinished(lens: Identified) -> dict[str, dict[str, Tensor]]:
    """The finished parts of a lens's unfinished experiments, by experiment and part."""
    return _UNFINISHED.setdefault(lens, {})


class Checkpoint:
    """The finished parts of one experiment, by name.

    Args:
        lens: the model.
        kind: what the experiment computes, as in "patching".
        about: what makes it this experiment and no other, of JSON types.
        path: of a file; None to keep the parts with the lens.

    Raises:
        ScoreError: the file belongs to another experiment, or is damaged, or its folder does not exist.

    Attributes:
        model: the identity of the lens's model when the experiment began.
    """

    def __init__(
        self, lens: Identified, kind: str, about: Mapping[str, Any], path: str | os.PathLike[str] | None
    ) -> None:
        self.lens, self.kind = lens, f"unfinished {kind}"
        self.path = None if path is None else Path(path)
        self.model = lens.identity  # reads all weights, so nobody is to ask twice
        self.about = {"of": {**about, **applied_in(lens), "model": self.model}}
        self.key = hashlib.sha256(json.dumps(self.about, sort_keys=True).encode()).hexdigest()
        self.parts: dict[str, Tensor] = unfinished(lens).setdefault(self.key, {})
        if self.path is not None and not self.path.parent.is_dir():
            raise ScoreError(f"the folder of the checkpoint {str(self.path)!r} does not exist\n  make it first")
        if self.path is not None and self.path.exists():
            self._load(self.path)

    def _load(self, path: Path) -> None:
        parts, about = files.read(path, self.kind, None, ("of",))
        if about["of"] != json.loads(json.dumps(self.about["of"])):
            theirs, mine = about["of"], self.about["of"]
            differ = sorted(name for name in {*theirs, *mine} - {"model"} if theirs.get(name) != mine.get(name))
            differ += _model_differs(theirs.get("model", {}), mine["model"])
            raise ScoreError(
                f"the checkpoint {path.name!r} belongs to another experiment: it differs in {', '.join(differ)}\n"
                "  give another file, or delete this one"
            )
        self.parts.update(parts)

    def __contains__(self, name: str) -> bool:
        return name in self.parts

    def __getitem__(self, name: str) -> Tensor:
        return self.parts[name]

    def put(self, **parts: Tensor) -> None:
        """Add finished parts; when this returns they are on disk, whole or not at all."""
        self.parts.update(parts)
        if self.path is not None:
            files.write(self.path, self.kind, self.parts, self.about)

    def finish(self) -> None:
        """Forget the parts that were kept with the lens; a file stays."""
        unfinished(self.lens).pop(self.key, None)


def applied_in(lens: Identified) -> dict[str, Any]:
    """What an experiment is made under beside its arguments, where a `with lens.apply(...)` stands around it."""
    return {"applied": [fingerprint(each) for each in lens.applied]} if lens.applied else {}


def _model_differs(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> list[str]:
    if not is_comparable(theirs):
        return ["the model, which another version of lmm-lens recorded in another way"]
    found = differences(theirs, mine)
    return [f"the model ({in_words(found)})"] if found else []


def digest(*things: Prompt | Tensor | None) -> str:
    """Tells prompts, by everything the model is given, and tensors apart."""
    found = hashlib.sha256()
    for thing in things:
        named = sorted(thing.inputs.items()) if isinstance(thing, Prompt) else [("", thing)]
        for name, value in named:
            found.update(name.encode())
            for tensor in tensors_in(value):
                found.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
                found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def digest_of_text(text: str) -> str:
    """Tells texts apart."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def fingerprint(value: Any) -> str:
    """Tells interventions apart: their class and parameters, of tensors the numbers, of functions the code."""
    if isinstance(value, Tensor):
        return digest(value)
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {fingerprint(value[key])}' for key in value)}}}"
    if isinstance(value, Prompt):
        return digest(value)
    if is_dataclass(value):
        parts = [f"{field.name}={fingerprint(getattr(value, field.name))}" for field in fields(value)]
        return f"{type(value).__name__}({', '.join(parts)})"
    if isinstance(value, (list, tuple, range)):
        return f"[{', '.join(fingerprint(item) for item in value)}]"
    if callable(value):
        return f"{getattr(value, '__name__', type(value).__name__)} {digest_of_value(value)}"
    return repr(value)
