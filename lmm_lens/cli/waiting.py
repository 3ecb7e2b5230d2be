"""A word on the screen while something takes long, from the first second on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from rich.console import Console


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """A spinner on standard error while this lasts; nothing where that is no terminal but a pipe or a file."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(what):
        yield


def command(name: str) -> Any:
    """What runs a command, imported under a spinner: much that is heavy comes with it."""
    with waiting("starting"):
        return import_module(f".{name}", __package__).run


def shows_bars() -> bool:
    """Whether progress bars, which are drawn on standard output, would be drawn on a terminal."""
    return Console().is_terminal
