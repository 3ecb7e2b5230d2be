"""The vision tower of one plain forward run again from some layer on, those before giving what they gave.

What then enters the decoder is exact, to the last bit: the same modules run on the same numbers. It goes into a replay
of the decoder's layers as any other changed residual stream.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..backends.base import TapsOf
from ..backends.entering import entered
from ..backends.native.tower import TowerSession
from ..core.taps import Tap
from ..errors import PromptError
from ..hooks.heads import VISION
from ..hooks.points import ModelShape
from ..interventions import AblateHeads
from ..interventions.base import bind_all
from ..prompts.joining import joined
from ..prompts.prompt import Prompt
from ..prompts.rows import bind_rows
from .batches import is_out_of_memory
from .check import UnfitError
from .recording import why_not

if TYPE_CHECKING:
    from ..lens import Lens


class TowerReplay:
    """A prompt's pictures in the tower.

    Args:
        lens: the model.
        prompt: of one row, with pictures.

    Attributes:
        tower: what the tower ran, its rows and tokens.

    Raises:
        UnfitError: the model goes through its own hook points, or something edits every forward.
    """

    def __init__(self, lens: Lens, prompt: Prompt) -> None:
        why = why_not(lens)
        if why:
            raise UnfitError(why)
        self.lens, self.prompt = lens, prompt
        self.modules = [layer.module for layer in lens.adapter.tower.layers]
        self.outputs: dict[int, Any] = {}
        self.is_packed = False  # whether copies of the pictures are put into one sequence; known when there are some
        with ExitStack() as hooks:
            for number, module in enumerate(self.modules):
                hooks.callback(module.register_forward_hook(self._keep(number), prepend=True).remove)
            session = self._session(lambda tower: [])
            with session, torch.no_grad():
                entered(lens.adapter, prompt.inputs)
        if session.prompt is None or session.n_passes != 1 or len(self.outputs) != len(self.modules):
            raise UnfitError(f"the vision tower ran {session.n_passes} times, expected once")
        self.tower = session.prompt

    def _keep(self, number: int) -> Any:
        def keep(module: nn.Module, args: Any, out: Any) -> None:
            self.outputs[number] = out

        return keep

    def _session(self, taps_of: TapsOf) -> TowerSession:
        return TowerSession(self.lens.adapter.tower, type(self.lens.model).__name__, taps_of, threading.get_ident())

    @property
    def n_tokens(self) -> int:
        """Of all rows together."""
        return self.tower.n_rows * self.tower.n_tokens

    def entering(
        self, edits: Sequence[AblateHeads], first: int, at_once: int
    ) -> list[Float[Tensor, "position d_model"]]:
        """What enters the decoder with each edit alone.

        Args:
            edits: of the tower.
            first: the first layer that any changes.
            at_once: how many copies of the pictures may run together.
        """
        found: list[Tensor] = []
        if not all(isinstance(each, Tensor) for each in self.prompt.inputs.values()):
            at_once = 1
        while len(found) < len(edits):
            part = edits[len(found) : len(found) + at_once]
            try:
                found += self._together(part, first)
            except (PromptError, UnfitError, RuntimeError) as error:
                if len(part) == 1 or is_out_of_memory(error):
                    raise
                at_once = 1  # pictures that are laid out side by side cannot be copied one behind the other
        return found

    def _together(self, edits: Sequence[AblateHeads], first: int) -> list[Tensor]:
        n = len(edits)
        prompt = joined([self.prompt] * n)
        shape = ModelShape.of_tower(self.lens.adapter.tower)

        def taps_of(tower: Prompt) -> list[Tap]:
            whole = (tower.n_rows, tower.n_tokens)
            self.is_packed = n > 1 and whole == (1, n * self.n_tokens)
            if not self.is_packed and whole != (n * self.tower.n_rows, self.tower.n_tokens):
                raise UnfitError(
                    f"{n} copies of the pictures are {whole} in the tower, one is {self.tower.mask('all').shape}"
                )
            own = [
                AblateHeads(each.heads, each.mode, self._of_copy(each, copy, n), part=VISION)
                for copy, each in enumerate(edits)
            ]
            return bind_all(own, tower, shape, in_tower=True)

        session = self._session(taps_of)
        with self.skipping(first, n), session, torch.no_grad():
            x = entered(self.lens.adapter, prompt.inputs)
        session.check_ran()
        return list(x)

    def _of_copy(self, edit: AblateHeads, copy: int, n: int) -> Bool[Tensor, "tower_row token"]:
        """The rows of an edit in one of the copies."""
        rows = bind_rows(edit.rows, self.tower).prompt
        whole = torch.zeros(n, *rows.shape, dtype=torch.bool)
        whole[copy] = rows
        return whole.flatten(0, 2)[None] if self.is_packed else whole.flatten(0, 1)

    @contextmanager
    def skipping(self, first: int, copies: int = 1) -> Iterator[None]:
        """Inside, and in this thread alone, the tower's layers before this one give what they gave, and run nothing."""
        with ExitStack() as undo:
            for number, module in enumerate(self.modules[:first]):
                own = module.__dict__.get("forward")
                module.__dict__["forward"] = _given(
                    module.forward, partial(self._copied, number, copies), threading.get_ident()
                )
                undo.callback(_back, module, own)
            yield

    def _copied(self, number: int, copies: int) -> Any:
        """What a layer gave, for copies of the pictures."""
        out = self.outputs[number]
        if copies == 1:
            return out
        parts = list(out) if isinstance(out, tuple) else [out]
        packed = self.is_packed and isinstance(parts[0], Tensor) and parts[0].ndim == 3
        parts = [torch.cat([each] * copies, 1 if packed else 0) if isinstance(each, Tensor) else each for each in parts]
        return tuple(parts) if isinstance(out, tuple) else parts[0]


def _given(forward: Any, out: Callable[[], Any], thread: int) -> Any:
    def forward_or_given(*args: Any, **kwargs: Any) -> Any:
        return out() if threading.get_ident() == thread else forward(*args, **kwargs)

    return forward_or_given


def _back(module: nn.Module, own: Any) -> None:
    if own is None:
        del module.__dict__["forward"]
    else:
        module.__dict__["forward"] = own
