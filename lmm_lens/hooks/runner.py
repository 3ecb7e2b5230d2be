"""A lens as the rooms below it know one: something that runs a prompt with edits and reads."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

from ..adapters import Adapter
from ..prompts.prompt import Prompt
from .points import ModelShape, Reader
from .results import Run


class Runner(Protocol):
    """What runs a model; see `lmm_lens.Lens`, which is one."""

    model: Any
    adapter: Adapter

    @property
    def n_layers(self) -> int: ...

    @property
    def shape(self) -> ModelShape: ...

    def run(
        self,
        prompt: Prompt,
        interventions: Sequence[Any] = (),
        read: Sequence[Reader | str] = (),
        *,
        logits: Literal["all", "last"] = "all",
    ) -> Run: ...

    def nothing_applied(self) -> AbstractContextManager[None]: ...
