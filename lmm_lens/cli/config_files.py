"""Configs of long runs: YAML files with keys that are checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import LensError, unknown
from ..reports.folder import CONFIG

EMPTY_SWEEP = "a sweep of everything is hardly meant\n  write what to sweep over, or give flags and no config"
EMPTY_COMPARISON = "a comparison needs conditions"
"""What an empty config leaves open."""


def read_values(path: Path, if_empty: str) -> dict[str, Any]:
    """The keys and values of a config.

    Args:
        path: a YAML file.
        if_empty: what an empty one leaves open, in words.

    Raises:
        LensError: no such file, no YAML, or something else in it.
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LensError(f"the config {str(path)!r} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise LensError(f"the config {str(path)!r} cannot be read: it is no text") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        said = " ".join(str(error).split())[:300]
        raise LensError(f"the config {path.name!r} is no YAML: {said}") from error
    if not values:
        raise LensError(f"the config {path.name!r} is empty, and {if_empty}")
    if not isinstance(values, Mapping):
        raise LensError(f"the config {path.name!r} must hold keys and values, it holds {values!r:.60}")
    return dict(values)


def save_values(values: Mapping[str, Any], folder: Path, name: str = CONFIG) -> None:
    """Write a config into a folder."""
    import yaml

    text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
    (folder / name).write_text(text, encoding="utf-8")


def check_keys(what: str, given: Mapping[Any, Any], valid: list[str]) -> None:
    """LensError for a key that is none."""
    for key in given:
        if key not in valid:
            raise LensError(unknown(what, key, valid))


def are_whole(values: Any) -> bool:
    """Whether these are whole numbers."""
    return isinstance(values, (list, tuple)) and all(isinstance(x, int) and not isinstance(x, bool) for x in values)


def check_whole(name: str, value: Any, least: int) -> None:
    """LensError unless it is a whole number, and not too small."""
    if not are_whole([value]) or value < least:
        raise LensError(f"{name} must be a whole number of at least {least}, given {value!r}")


def free_folder(folder: Path, run: str, what: str) -> Path:
    """The folder, if it holds such a run or can come to hold one; LensError otherwise.

    Args:
        folder: it.
        run: the name of the run's own folder in it.
        what: is written there, in a word.
    """
    if "\0" in str(folder):
        raise LensError(f"no folder can be called {str(folder)!r}: it holds a NUL character")
    if folder.exists() and not folder.is_dir():
        raise LensError(f"{str(folder)!r} is a file: a {what} is written into a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / run).is_dir():
        raise LensError(f"the folder {str(folder)!r} holds other things and no {what}\n  give a new or an empty folder")
    return folder


def begin_folder(folder: Path, run: str) -> bool:
    """Make a run's folder if it is not there; whether it has no config yet.

    Raises:
        LensError: it cannot be made.
    """
    try:
        (folder / run).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LensError(f"the folder {str(folder)!r} cannot be made: {error.strerror}") from error
    return not (folder / CONFIG).exists()
