"""What runs in a Ray worker: the work, made once, on blocks of items."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .job import Done, Job, Work, do_all
from .manifest import current_versions


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of a block.

    Attributes:
        done: the finished items.
        seconds: that they took.
        error: of the item behind them, which ended the block.
        versions: of the worker, in its first answer.
    """

    done: Sequence[Done] = ()
    seconds: float = 0.0
    error: Exception | None = None
    versions: Mapping[str, str] = field(default_factory=dict)


class Worker:
    """The work in a process of its own.

    Errors of the work are answers, not failures of the worker: Ray must not try them again.

    Args:
        threads: that torch uses where the sweep was started; other numbers of threads may give other last bits.
        what: is being done, in words.
    """

    def __init__(self, threads: int, what: str) -> None:
        torch.set_num_threads(threads)
        self.what = what
        self.work: Work | None = None

    def ready(self, make_work: Sequence[Any]) -> Outcome:
        """Make the work.

        Args:
            make_work: one reference to it. In a list, so that Ray does not fetch it for each call: it may hold a model.
        """
        try:
            self._make(make_work)
        except Exception as error:
            return Outcome(error=_portable(error))
        return Outcome(versions=current_versions())

    def run(self, make_work: Sequence[Any], block: Sequence[Job]) -> Outcome:
        """Do some items, up to the first that fails."""
        done: list[Done] = []
        try:
            work = self._make(make_work)
            start = time.monotonic()
            for each in do_all(block, work, self.what):
                done.append(each)
        except Exception as error:
            return Outcome(done, error=_portable(error))
        return Outcome(done, time.monotonic() - start)

    def _make(self, make_work: Sequence[Any]) -> Work:
        """The work; made by the first call, and again by the first after a restart."""
        import ray

        if self.work is None:
            (reference,) = make_work
            self.work = ray.get(reference)()
        return self.work


def _portable(error: Exception) -> Exception:
    """The error with the worker's own traceback as a note, in a form that can travel."""
    from ray import cloudpickle

    error.add_note("".join(["in a Ray worker:\n", *traceback.format_tb(error.__traceback__)]).rstrip())
    try:
        cloudpickle.loads(cloudpickle.dumps(error))
    except Exception:  # its class has a constructor that asks for more than a message
        other = RuntimeError(f"{type(error).__name__}: {error}")
        for note in error.__notes__:
            other.add_note(note)
        return other
    return error
