"""The table of families: a tiny model of each, with the real processor, built from nothing."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import nn

from lmm_lens import Lens

Built = tuple[nn.Module, Any]
"""A model and its processor."""
BUILD: dict[str, Callable[[], Built]] = {}


def family(name: str, *arguments: Any) -> Callable[[Callable[..., Built]], Callable[..., Built]]:
    """Enters what a function builds, of these arguments. A name of several words is a variant of its first."""

    def enter(build: Callable[..., Built]) -> Callable[..., Built]:
        BUILD[name] = partial(build, *arguments)
        return build

    return enter


@cache
def lens_of(name: str, backend: str = "native") -> Lens:
    """The lens of a family on a backend; all backends share the model of the native one."""
    if backend != "native":
        native = lens_of(name)
        return Lens(native.model, native.processor, backend=backend)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, processor = BUILD[name]()
    return Lens(model.eval(), processor)
