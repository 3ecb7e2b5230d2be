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

from ..errors import ScoreError, unknown
from .folder import RunFolder
from .job import Done, Job, MakeWork, Work, do
from .ray_cluster import RayLike, as_cluster
from .ray_crew import compute
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
    changed: str = "refuse",
) -> Store:
    """Do the same work on every item.

    Args:
        items: any number of them; consumed once, as they are needed.
        make_work: makes the work, once here or once on each worker, when the first item needs it. The work takes an
            item and gives small tensors, of the same names, shapes and data types for every item.
        key_of: what tells an item from others, "name<tab>part:digest part:digest"; compared with what the folder holds.
        folder: where finished items go and are found again. None keeps all results in memory, which then grows by
            their size with every item, and an interrupted sweep begins anew.
        ray: None for here; the number of local workers; the address of a Ray cluster; or a `RayCluster`.
        progress: show a progress bar.
        what: is being done, in words, for the progress bar and the notes at errors.
        seconds_per_part: of work; results are written with the item that passes them, and after 256 items or 64 MiB.
        changed: what to do where an item is not what it was when the folder got its result: "refuse", or "recompute"
            those, keep the others, and drop those of items behind the last one. One that was left out then is computed
            again in any case.

    Returns:
        The folder, or without one the results in memory; `tensors()`, `key(index)` and `n_items` are the same.

    Raises:
        ScoreError: the data set is not the one of the folder, an item has other tensors than those before it, or a
            part could not be written.
        Exception: of the work, with a note that names the item. What was finished before any error, and before an
            interrupt from the keyboard, is written first.
    """
    if changed not in CHANGED:
        raise ScoreError(unknown("choice of changed", changed, CHANGED))
    store: Store = Memory() if folder is None else folder
    saving = Saving(store, seconds_per_part)
    cluster = as_cluster(ray)
    with _shown(what, length_hint(items, 0) or None, store, progress) as show:
        todo = _Todo(items, key_of, store, show, changed == "recompute")
        if cluster is None:
            results = _here(make_work, iter(todo), what)
        else:
            results = compute(cluster, make_work, iter(todo), what, seconds_per_part)
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

    def __init__(
        self, items: Iterable[Any], key_of: Callable[[Any], str], store: Store, show: Show, recomputes: bool
    ) -> None:
        self.items, self.key_of, self.store, self.show, self.recomputes = items, key_of, store, show, recomputes
        self.n_seen = 0

    def __iter__(self) -> Iterator[Job]:
        for index, item in enumerate(self.items):
            job = Job(index, self._key(index, item), item)
            self.n_seen += 1
            if index in self.store and self._is_same(job):
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

    def _is_same(self, job: Job) -> bool:
        """Whether a finished item is what it was; where it is not, and may be, its result is gone.

        Raises:
            ScoreError: it is not, and must be.
        """
        before = self.store.key(job.index)
        if before == job.key:
            return True
        if not self.recomputes and not self.store.note_on(job.index):
            raise ScoreError(f"{_changed(self.store)}: {_what_differs(job.index, before, job.key)}\n  {NEW_FOLDER}")
        self.store.drop(job.index)
        return False

    def check_end(self) -> None:
        """ScoreError: the store holds items beyond the end; asked to recompute what changed, it is rid of them."""
        more = self.store.ranges[-1].stop if self.store.ranges else 0
        if self.recomputes:
            for index in range(self.n_seen, more):
                self.store.drop(index)
        elif more > self.n_seen:
            raise ScoreError(
                f"{_changed(self.store)}: it ended after {self.n_seen} items, and item {more - 1} "
                f"({self.store.key(more - 1)!r}) was finished before\n  {NEW_FOLDER}"
            )


NEW_FOLDER = (
    "give the items as they were, in their order, or another folder; or changed='recompute', which computes anew what "
    "changed"
)
CHANGED = ("refuse", "recompute")


def _what_differs(index: int, before: str, now: str) -> str:
    """In words, of two keys."""
    (name, _, old), (same, _, new) = before.rpartition("\t"), now.rpartition("\t")
    if name != same or not name:
        return f"item {index} was {name or before!r} and is now {same or now!r}"
    was, is_now = (dict(part.partition(":")[::2] for part in each.split()) for each in (old, new))
    parts = sorted(part for part in {*was, *is_now} if was.get(part) != is_now.get(part))
    return f"item {index} ({name or now}) is another than before: its {' and its '.join(parts)} changed"


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
