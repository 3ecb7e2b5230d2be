"""`Lens.apply` and its opposite: what is edited inside a `with` block, by whichever way the model is run there.

A block belongs to the thread (the context) that opened it: calls of the lens in other threads are their own. Direct
calls of the model are edited in all threads, since `generate` is often called from a thread of its own.
"""

from __future__ import annotations

from contextlib import ExitStack
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING

from ..backends.base import Backend, InTower, PromptOf, Session
from ..backends.interrupts import GUARD, uninterrupted
from ..errors import InterventionError
from ..interventions.base import Intervention
from .plan import Plan

if TYPE_CHECKING:
    from .lens import Lens


class Block:
    """One `with` block of a lens.

    Args:
        lens: whose.
        interventions: what it adds to the blocks around it.
        hides: whether the blocks around it do not count.

    Attributes:
        n_runs: calls of the lens inside it.
    """

    def __init__(self, lens: Lens, interventions: tuple[Intervention, ...] = (), hides: bool = False) -> None:
        self.lens, self.interventions, self.hides, self.n_runs = lens, interventions, hides, 0

    def _open(self) -> None:
        _OPEN.set((*_OPEN.get(), self))

    def _close(self) -> None:
        _OPEN.set(tuple(block for block in _OPEN.get() if block is not self))  # blocks may end in any order


_OPEN: ContextVar[tuple[Block, ...]] = ContextVar("lmm_lens_blocks", default=())


def blocks_of(lens: Lens) -> list[Block]:
    """The open blocks of a lens that count here, the outermost first."""
    own: list[Block] = []
    for block in _OPEN.get():
        if block.lens is lens:
            own = [] if block.hides else [*own, block]
    return own


def applied_to(lens: Lens) -> tuple[Intervention, ...]:
    """What the open blocks put into every run of a lens here."""
    return tuple(each for block in blocks_of(lens) for each in block.interventions)


class NothingApplied(Block):
    """Inside, the lens runs its model as it is; runs there do not count as runs of the blocks around."""

    def __init__(self, lens: Lens) -> None:
        super().__init__(lens, hides=True)

    @uninterrupted
    def __enter__(self) -> None:
        GUARD.open()
        self._open()

    @uninterrupted
    def __exit__(self, *exception: object) -> None:
        self._close()
        GUARD.close()


class Applied(Block):
    """Inside, everything that runs the model is edited.

    Args:
        lens: of the model.
        interventions: edits, in order.
        backend: runs it.
        prompt_of: makes a prompt of a direct call.

    Raises:
        InterventionError: at the end, where the model did not run in the block.
    """

    def __init__(
        self, lens: Lens, interventions: tuple[Intervention, ...], backend: Backend, prompt_of: PromptOf
    ) -> None:
        super().__init__(lens, interventions)
        self.backend, self.prompt_of = backend, prompt_of
        self._session: Session | None = None
        self._towers = ExitStack()
        self._tower: InTower | None = None
        self._plan: Plan | None = None

    @uninterrupted
    def __enter__(self) -> Lens:
        GUARD.open()
        try:
            self._open()
            self._plan = self.lens._plan_of(applied_to(self.lens))
            self._tower = self._towers.enter_context(self.lens._in_tower(self._plan, None))
            session = self.backend.session(self._plan.taps_beside(self._tower), prompt_of=self.prompt_of)
            session.__enter__()
            self._session = session
        except BaseException:
            self._undo()
            raise
        if GUARD.waiting:
            self._undo()
        return self.lens

    @uninterrupted
    def _undo(self) -> None:
        session, self._session = self._session, None
        try:
            if session is not None:
                session.__exit__(None, None, None)
        finally:
            self._towers.close()
            self._close()
            GUARD.close()

    @uninterrupted
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        session, plan = self._session, self._plan
        self._undo()
        if session is None or plan is None:
            return
        n_passes = session.n_passes
        for block in blocks_of(self.lens):
            block.n_runs += bool(n_passes)
        if error is not None:
            return
        if not n_passes and not self.n_runs:
            raise InterventionError(
                "the model did not run inside this `with lens.apply(...)` block, so nothing was edited\n"
                f"  call {self.backend.ways_in} in it"
            )
        if n_passes:
            plan.reports(session.tapping, self._tower)
