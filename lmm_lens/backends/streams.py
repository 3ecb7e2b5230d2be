"""What a layer is handed: the tensor that it transforms, by place or under one of the names that models use."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..errors import HookError

NAMES = ("hidden_states", "hidden_state", "inputs_embeds", "inputs", "x")
"""Under which layers are handed their stream, where they are not handed it by place."""


def stream_into(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, Tensor | None]:
    """The name it was given by, empty for the first place, and the tensor; None where there is none that is known."""
    name = "" if args else next((name for name in NAMES if name in kwargs), "")
    found = args[0] if args else kwargs.get(name)
    return name, found if isinstance(found, Tensor) else None


def stream_of(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, Tensor]:
    """The same of a module that has to have one; HookError where it has none that is known."""
    name, found = stream_into(args, kwargs)
    if found is None:
        raise HookError(
            f"{type(module).__name__} is handed no tensor by place or as one of {', '.join(NAMES)}, so what enters it "
            "can be neither read nor edited"
        )
    return name, found
