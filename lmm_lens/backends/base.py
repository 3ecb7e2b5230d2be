"""What a backend is: it runs a model with taps in it, and knows prompts and taps, not what they are for.

A new backend is a folder beside this file with a class of these members, and its line in `lmm_lens.backends.table`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar, Protocol, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..adapters import Adapter
from ..adapters.towers import Tower
from ..core.carried import Carried
from ..core.tapping import Tapping
from ..core.taps import Tap
from ..prompts.prompt import Prompt

TapsOf = Callable[[Prompt], Sequence[Tap]]
"""The taps of a prompt: what binds interventions and reads to whatever is about to run."""

PromptOf = Callable[[Mapping[str, Any]], Prompt]
"""The prompt of a call of the model, from its keyword arguments."""

Remote = bool | str
"""False: here. True: on NDIF, or the host of nnsight's configuration. "http://...": on that server. "local": here, but
packed and unpacked as for a server."""


@dataclass(frozen=True, eq=False)
class ForwardPass:
    """One forward pass to be made, of several.

    Attributes:
        prompt: what runs.
        taps_of: gives its taps.
        tokens: Int[batch, n], the logits of these tokens alone; None for the whole vocabulary.
    """

    prompt: Prompt
    taps_of: TapsOf
    tokens: Int[Tensor, "batch n"] | None = None


@dataclass(frozen=True, eq=False)
class Forward:
    """What came of one forward pass.

    Attributes:
        logits: of all positions, or of each row's last prompt token.
        tapping: what its taps read and did.
    """

    logits: Float[Tensor, "batch position vocab"]
    tapping: Tapping


@dataclass(frozen=True, eq=False)
class Continuation:
    """What came of one generation.

    Attributes:
        tokens: the new ones.
        logits: of each step, where they were asked for.
        tapping: what its taps read and did, all passes together.
    """

    tokens: Int[Tensor, "batch new"]
    logits: Float[Tensor, "batch new vocab"] | None
    tapping: Tapping


class Session(Protocol):
    """A context in which whatever runs the model runs with taps.

    Attributes:
        tapping: what the taps read and did so far.
        n_passes: how often the model ran in it.
    """

    @property
    def tapping(self) -> Tapping: ...

    @property
    def n_passes(self) -> int: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


class InTower(Protocol):
    """A context in which the vision tower runs with taps.

    Attributes:
        tapping: what they read and did.
        prompt: what the tower ran; None before it did.
    """

    @property
    def tapping(self) -> Tapping: ...

    @property
    def prompt(self) -> Prompt | None: ...

    def check_ran(self) -> None:
        """HookError where the tower did not do what was asked."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


class Backend(Protocol):
    """Runs a model with taps in it.

    Attributes:
        name: what users call it.
        ways_in: how the model is run inside a session, in words, for the error that says that it was not.
        runs_replays: whether the plain forward can be recorded and its layers run again by themselves.
        adapter: of the user's model.
        remote: where it runs; always False where it cannot run elsewhere.
        weights_elsewhere: what stands for the weights of a model that only a server has; None where they are here.
    """

    name: ClassVar[str]
    ways_in: ClassVar[str]
    runs_replays: ClassVar[bool]
    adapter: Adapter

    @property
    def remote(self) -> Remote: ...

    @property
    def weights_elsewhere(self) -> str | None: ...

    @property
    def device(self) -> torch.device:
        """Where a prompt's tensors go."""
        ...

    @property
    def tower(self) -> Tower:
        """The vision tower of the modules that run; ModelError where there is none with heads."""
        ...

    def forward(
        self,
        prompt: Prompt,
        taps_of: TapsOf,
        *,
        last_only: bool = False,
        grad: bool = False,
        carried: Carried | None = None,
    ) -> Forward:
        """One pass over a prompt.

        Args:
            prompt: the prompt.
            taps_of: gives the taps.
            last_only: logits of each row's last prompt token alone, [batch, 1, vocab].
            grad: keep the graph.
            carried: what earlier runs have left to this one.
        """
        ...

    def forward_all(self, passes: Sequence[ForwardPass]) -> Iterator[Forward]:
        """Several passes, one after the other, which share what they carry; logits of the last prompt tokens."""
        ...

    def generate(self, prompt: Prompt, taps_of: TapsOf, options: Mapping[str, Any]) -> Continuation:
        """Generate with transformers' own `generate`, cache and all; greedy unless the options say otherwise."""
        ...

    def prepare(self, prompt: Prompt) -> None:
        """Do what the first run of such a prompt would do besides running it."""
        ...

    def session(self, taps_of: TapsOf, prompt: Prompt | None = None, prompt_of: PromptOf | None = None) -> Session:
        """A context in which the model runs with taps.

        Args:
            taps_of: gives the taps of a prompt.
            prompt: the prompt about to be run; None to make one of whatever the model is called with.
            prompt_of: makes a prompt of the keyword arguments of a call.
        """
        ...

    def tower_session(self, taps_of: TapsOf, thread: int | None) -> InTower:
        """A context in which the vision tower runs with taps.

        Args:
            taps_of: gives the taps of what the tower runs (`lmm_lens.prompts.tower`).
            thread: whose runs; None for every thread's.
        """
        ...

    def at(self, remote: Remote) -> AbstractContextManager[None]:
        """Inside, run there; LensError where this backend cannot."""
        ...

    def pickled(self) -> tuple[Any, ...] | None:
        """What stands for a lens that is on its way to a server, as `__reduce__` gives it; None where it is not."""
        ...
