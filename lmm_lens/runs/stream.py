"""A long sweep: the same work on every item of a stream, here or on many workers.

Items are taken one by one as they are needed and nothing of them is kept, so the stream may have any length. Results
are written in parts of a few seconds' work; those that a folder holds are not computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from operator import length_hint
from typing import Any, TypeVar

from torch import Tensor

from ..errors import ScoreError
from .folder import RunFolder
from .job import Done, Job, MakeWork, Work, do
from .ray_cluster import RayLike, as_cluster
from .saving import Saving
from .store import Memory, Store

T = TypeVar("T")
Show = Callable[[], None]


def stream(
    items: Iterable[T],
    make_work: Callable[[], Callable[[T], Mapping[str, Tensor]]],
    key_of: Callable[[T], str],
    folder: RunFolder | None,
    *,
    ray: RayLike = None,
    progress: bool = False,
    what: str = "sweeping",
    seconds_per_part: float = 10.0,
) -> Store:
    """Do the same work on every item.

    Args:
        items: any number of them; consumed once, as they are needed.
        make_work: makes the work, once here or once on each worker, when the first item needs it. The work takes an
            item and gives small tensors, of the same names, shapes and data types for every item.
        key_of: what tells an item from others, as a digest of it; compared with what the folder holds.
        folder: where finished items go and are found again. None keeps all results in memory, which then grows by
            their size with every item, and an interrupted sweep begins anew.
        ray: None for here; the number of local workers; the address of a Ray cluster; or a `RayCluster`.
        progress: show a progress bar.
        what: is being done, in words, for the progress bar and the notes at errors.
        seconds_per_part: of work; results are written with the item that passes them, and after 256 items or 64 MiB.

    Returns:
        The folder, or without one the results in memory; `tensors()`, `key(index)` and `n_items` are the same.

    Raises:
        ScoreError: the data set is not the one of the folder, an item has other tensors than those before it, or a
            part could not be written.
        Exception: of the work, with a note that names the item. What was finished before any error, and before an
            interrupt from the keyboard, is written first.
    """
    store: Store = Memory() if folder is None else folder
    saving = Saving(store, seconds_per_part)
    cluster = as_cluster(ray)
    with _shown(what, length_hint(items, 0) or None, store, progress) as show:
        todo = _Todo(items, key_of, store, show)
        if cluster is None:
            results = _here(make_work, iter(todo), what)
        else:
            results = cluster.compute(make_work, iter(todo), what, seconds_per_part)
        with closing(results):  # an error that is kept would keep the workers
            try:
                for done in results:
                    saving.add(done)
                    show()
            except BaseException as error:
                try:
                    saving.flush()
                except ScoreError as lost:
                    error.add_note(str(lost))
                raise
        saving.flush()
    todo.check_end()
    return store


def _here(make_work: MakeWork, todo: Iterator[Job], what: str) -> Generator[Done]:
    work: Work | None = None
    for job in todo:
        if work is None:
            work = make_work()
        yield do(job, work, what)


class _Todo:
    """The items that are not finished yet; those that are must have the key they were finished with."""

    def __init__(self, items: Iterable[Any], key_of: Callable[[Any], str], store: Store, show: Show) -> None:
        self.items, self.key_of, self.store, self.show = items, key_of, store, show
        self.n_seen = 0

    def __iter__(self) -> Iterator[Job]:
        for index, item in enumerate(self.items):
            job = Job(index, self._key(index, item), item)
            self.n_seen += 1
            if index in self.store:
                self._check_same(job)
                self.show()
            elif self.store.finished:
                raise ScoreError(f"{_changed(self.store)}: the run is finished, and now there is {job}\n  {NEW_FOLDER}")
            else:
                yield job

    def _key(self, index: int, item: Any) -> str:
        key = self.key_of(item)
        if not isinstance(key, str):
            raise ScoreError(f"the key of item {index} must be text, given {type(key).__name__}")
        return key

    def _check_same(self, job: Job) -> None:
        before = self.store.key(job.index)
        if before != job.key:
            raise ScoreError(
                f"{_changed(self.store)}: item {job.index} was {before!r} and is now {job.key!r}\n  {NEW_FOLDER}"
            )

    def check_end(self) -> None:
        """ScoreError: the store holds items beyond the end."""
        more = self.store.ranges[-1].stop if self.store.ranges else 0
        if more > self.n_seen:
            raise ScoreError(
                f"{_changed(self.store)}: it ended after {self.n_seen} items, and item {more - 1} "
                f"({self.store.key(more - 1)!r}) was finished before\n  {NEW_FOLDER}"
            )


NEW_FOLDER = "give the items as they were, in their order, or another folder"


def _changed(store: Store) -> str:
    return f"the data set is not the one of {store!r}"


@contextmanager
def _shown(what: str, total: int | None, store: Store, shown: bool) -> Iterator[Show]:
    """A function to call whenever an item is finished, or was before."""
    if not shown:
        yield lambda: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    words, rate = TextColumn("{task.description}"), TextColumn("{task.fields[rate]}")
    with Progress(words, BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn(), transient=True) as bar:
        task = bar.add_task(what, total=total, rate="")

        def show() -> None:
            speed = bar.tasks[0].speed
            rate = f"{speed:.3g} items/s, " if speed else ""
            bar.update(task, advance=1, rate=f"{rate}part {store.n_parts + 1}")

        yield show
