"""Which run a folder belongs to: its kind, its model, arguments and seeds, and the versions it was computed with."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..backends import identity
from ..errors import ScoreError
from ..warnings import warn
from . import disk

FORMAT = "lmm-lens run 1"
PACKAGES = ("lmm-lens", "torch", "transformers", "transformer-lens", "nnsight", "numpy")


@dataclass(frozen=True)
class Manifest:
    """What is written once, when a run begins.

    Attributes:
        kind: what the run computes, as in "head effects".
        about: what makes it this run and no other, of JSON types.
        versions: of everything that computed parts of it, the earliest first.
    """

    kind: str
    about: Mapping[str, Any]
    versions: tuple[Mapping[str, str], ...]

    @classmethod
    def of(cls, kind: str, about: Mapping[str, Any]) -> Manifest:
        """The manifest of a run that this process would begin; `about["versions"]` joins the versions.

        Raises:
            ScoreError: `about` is not of JSON types.
        """
        plain = as_json(about, "what a run is about")
        return cls(kind, plain, ({**current_versions(), **plain.pop("versions", {})},))

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """ScoreError: it is damaged."""
        name = path.parent.name
        try:
            with disk.told(f"the manifest of the run folder {name!r} cannot be read"):
                content = disk.read_json(path)
            if content.get("format") != FORMAT:
                raise disk.DamagedError(f"its format is {content.get('format')!r}, expected {FORMAT!r}")
            return cls(content["kind"], content["about"], tuple(content["versions"]))
        except (disk.DamagedError, KeyError) as error:
            raise ScoreError(
                f"the manifest of the run folder {name!r} is damaged: {error}\n"
                "  it cannot be told which run this is: give another folder, or delete this one"
            ) from error

    def write(self, path: Path) -> None:
        content = {"format": FORMAT, "kind": self.kind, "about": self.about, "versions": list(self.versions)}
        disk.write_json(path, content)

    def agree(self, mine: Manifest, name: str) -> Manifest:
        """The manifest to go on with: this one, with the versions of `mine`.

        Args:
            mine: what is asked for now.
            name: of the folder.

        Raises:
            ScoreError: `mine` is another run.
        """
        found = differences({"kind": self.kind, **self.about}, {"kind": mine.kind, **mine.about})
        if found:
            theirs, ours = self.about.get("model"), mine.about.get("model")
            fields = f"it differs in {len(found)} field{'s' * (len(found) > 1)}"
            if isinstance(ours, Mapping) and isinstance(theirs, Mapping) and identity.is_comparable(ours):
                if not identity.is_comparable(theirs):
                    raise ScoreError(
                        f"the run folder {name!r} {identity.not_comparable(theirs)}\n"
                        "  give another folder, or delete this one"
                    )
                differing = identity.differences(theirs, ours)
                fields += f"; of the model {identity.in_words(differing)}" if differing else ""
            raise ScoreError(
                f"the run folder {name!r} belongs to another run: {fields}\n"
                f"  {'; '.join(found)}\n  give another folder, or delete this one"
            )
        (now,) = mine.versions
        if now in self.versions:
            return self
        changed = differences(self.versions[-1], now, ("before", "now"))
        warn(
            f"the run folder {name!r} is continued with other versions, so numbers may differ in the last bits: "
            f"{'; '.join(changed)}"
        )
        return replace(self, versions=(*self.versions, now))


def current_versions() -> dict[str, str]:
    """Everything here that the last bits of a number may hang on, but for the model and the arguments."""
    import torch

    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    cpu = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {**found, "cpu": cpu, "torch threads": str(torch.get_num_threads())}


def differences(
    first: Mapping[str, Any], second: Mapping[str, Any], names: tuple[str, str] = ("there", "here")
) -> list[str]:
    """Every field that differs, with both values shortened to where they do.

    >>> differences({"seed": 0, "model": {"weights": "ab"}}, {"seed": 1, "model": {"weights": "ab"}})
    ['seed: 0 there, 1 here']
    """
    a, b = _flat(first), _flat(second)
    found = []
    for name in sorted({*a, *b}):
        x, y = a.get(name, "nothing"), b.get(name, "nothing")
        if x != y:
            start = next((i for i, (p, q) in enumerate(zip(x, y, strict=False)) if p != q), min(len(x), len(y)))
            found.append(f"{name}: {_around(x, start)} {names[0]}, {_around(y, start)} {names[1]}")
    return found


def _flat(value: Any, name: str = "") -> dict[str, str]:
    if not isinstance(value, Mapping) or not value:
        return {name: disk.canonical(value)}
    parts = [_flat(value[key], f"{name}.{key}" if name else key) for key in value]
    return {key: text for part in parts for key, text in part.items()}


def _around(text: str, start: int, width: int = 40) -> str:
    """A text of at most `width` characters, from shortly before `start`."""
    if len(text) <= width:
        return text
    begin = max(0, min(start - 10, len(text) - width))
    end = begin + width
    return f"{'…' if begin else ''}{text[begin:end]}{'…' if end < len(text) else ''}"


def as_json(value: Any, what: str) -> Any:
    """A copy of a value as it comes back from a file.

    Raises:
        ScoreError: it is not of JSON types.
    """
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise ScoreError(f"{what} must be of JSON types: {error}\n  give text, numbers, lists and mappings") from error
