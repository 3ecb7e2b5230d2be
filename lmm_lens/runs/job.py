"""One item of a stream: what is to be done, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..errors import ScoreError

Work = Callable[[Any], Mapping[str, Tensor]]
MakeWork = Callable[[], Work]


@dataclass(frozen=True, eq=False)
class Job:
    """What is to be done.

    Attributes:
        index: the place of the item in the stream.
        key: what tells it from others.
        item: what the work is given.
    """

    index: int
    key: str
    item: Any

    def __str__(self) -> str:
        return f"item {self.index} ({self.key.rpartition(chr(9))[0] or self.key!r})"


@dataclass(frozen=True, eq=False)
class Done:
    """What came of it: name to small tensors on the CPU, one item's; and why nothing did, where nothing did."""

    index: int
    key: str
    tensors: Mapping[str, Tensor]
    note: str = ""


class LeftOutError(Exception):
    """Raised by the work on an item that cannot be used, which is counted, named and gone by.

    Args:
        note: what is wrong with it.
        tensors: what stands in its place, like other items'.
    """

    def __init__(self, note: str, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(note)
        self.note, self.tensors = note, tensors


def do(job: Job, work: Work, what: str) -> Done:
    """Do one item; an error of the work gets a note that names it."""
    try:
        return Done(job.index, job.key, _small(work(job.item), job))
    except LeftOutError as gone:
        return Done(job.index, job.key, _small(gone.tensors, job), gone.note)
    except Exception as error:
        error.add_note(f"while {what}, {job}")
        raise


def do_all(jobs: Sequence[Job], work: Work, what: str) -> Iterator[Done]:
    """Do one item after the other.

    Work with a method `prepare` has the next item prepared in a thread while it does this one: pictures are opened and
    cut up while the model computes. `prepare` takes an item and gives what the work is given in its place; it raises
    nothing for an item that cannot be used, but leaves it to the work.
    """
    prepare: Callable[[Any], Any] | None = getattr(work, "prepare", None)
    if prepare is None or len(jobs) < 2:
        yield from (do(job, work, what) for job in jobs)
        return
    with ThreadPoolExecutor(1, "prepares the next item") as thread:
        ready: Future[Any] | None = None
        for job, following in zip(jobs, [*jobs[1:], None], strict=True):
            prepared = job if ready is None else replace(job, item=ready.result())
            ready = None if following is None else thread.submit(prepare, following.item)
            yield do(prepared, work, what)


def _small(found: object, job: Job) -> dict[str, Tensor]:
    """Copies, so that neither a graph, nor a larger tensor behind a view, nor a buffer used again is kept."""
    if not isinstance(found, Mapping) or not found or not all(isinstance(x, Tensor) for x in found.values()):
        raise ScoreError(f"the work on {job} gave {type(found).__name__}, expected a mapping of names to tensors")
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in found.items()}
