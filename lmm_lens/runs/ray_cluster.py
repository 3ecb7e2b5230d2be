"""The same stream over Ray: a worker with a model of its own each, results back to here.

Ray places, watches and restarts the workers. This side only hands out blocks of items that follow one another, a few
at a time, so a stream is never read far ahead.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import torch

from ..errors import ScoreError
from ..warnings import warn
from .job import Done, Job, MakeWork
from .manifest import current_versions, differences
from .ray_worker import Outcome, Worker

BLOCK = 8
"""Items in one task, at most; fewer where they take long, so that a part is not held up."""
IN_FLIGHT = 2
"""Tasks of a worker: one it works on, one that waits for it."""
RETRIES = 3
"""How often a block is tried again after it lost its worker."""
RESTARTS = 100
"""Of each worker: a machine that is taken away now and then must not end a week's work."""


@dataclass(frozen=True)
class RayCluster:
    """Which workers to use.

    Attributes:
        workers: how many; None for as many as the cluster has room for, or two on this machine.
        address: of a running cluster, as in "auto", "10.0.0.1:6379" or "ray://10.0.0.1:10001"; None for this machine.
        num_cpus: of each worker, for Ray's placement.
        num_gpus: of each worker; with 0 a worker sees no GPU.
        resources: further ones that each worker needs, by the cluster's own names.
    """

    workers: int | None = None
    address: str | None = None
    num_cpus: float = 1
    num_gpus: float = 0
    resources: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = self.workers
        if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
            raise ScoreError(f"expected a number of Ray workers of at least 1, given {n!r}")
        for name, amount in self.needs.items():
            if not amount >= 0:
                raise ScoreError(f"a Ray worker cannot need {amount!r} {name}")

    @property
    def needs(self) -> dict[str, float]:
        """What each worker takes of the cluster, by Ray's names."""
        return {"CPU": self.num_cpus, "GPU": self.num_gpus, **self.resources}

    def compute(self, make_work: MakeWork, todo: Iterator[Job], what: str, seconds: float) -> Generator[Done]:
        """The results, in whatever order they come in.

        Args:
            make_work: sent to each worker, and called there once.
            todo: the items.
            what: is being done, in words.
            seconds: that a block should take, at most.

        Raises:
            ScoreError: Ray is missing, its cluster cannot be reached, or a block lost every worker it was given to.
            Exception: of the work, with a note that names the item.
        """
        first = next(todo, None)
        if first is None:
            return
        with _connected(self) as ray, _crew(ray, self, what) as crew:
            shared = ray.put(make_work)  # once for all, also for those that are restarted
            yield from _Rounds(ray, crew, shared, chain([first], todo), seconds, what).results()


RayLike = int | str | RayCluster | None


def as_cluster(given: RayLike) -> RayCluster | None:
    """What a user may give as `ray=`."""
    if given is None or isinstance(given, RayCluster):
        return given
    if isinstance(given, str):
        return RayCluster(address=given)
    if isinstance(given, bool) or not isinstance(given, int):
        raise ScoreError(
            f"expected ray= as a number of local workers, the address of a cluster or a RayCluster, given {given!r}"
        )
    return RayCluster(workers=given)


class _Rounds:
    """Hands out blocks and takes results until there are no more."""

    def __init__(
        self, ray: Any, crew: list[Any], make_work: Any, todo: Iterator[Job], seconds: float, what: str
    ) -> None:
        self.ray, self.make_work, self.todo, self.seconds, self.what = ray, [make_work], todo, seconds, what
        self.size = 1  # until it is known how long an item takes
        # a worker for which there is no room yet never answers, and gets no block
        self.flying: dict[Any, tuple[Any, list[Job]]] = {each.ready.remote(self.make_work): (each, []) for each in crew}
        self.versions = current_versions()

    def results(self) -> Iterator[Done]:
        while self.flying:
            (ref,), _ = self.ray.wait(list(self.flying))
            worker, block = self.flying.pop(ref)
            outcome = self._outcome(ref, worker, block)
            yield from outcome.done
            if outcome.error is not None:
                raise outcome.error
            if not block:
                self._compare(outcome)
            if outcome.done:
                per_item = outcome.seconds / len(outcome.done)
                self.size = min(BLOCK, max(1, int(self.seconds / IN_FLIGHT / max(per_item, 1e-9))))
            for _ in range(1 if block else IN_FLIGHT):
                self._send(worker)
            if not any(jobs for _, jobs in self.flying.values()):
                return  # all done; other workers may still be waiting for room

    def _send(self, worker: Any) -> None:
        block = list(islice(self.todo, self.size))
        if block:
            self.flying[worker.run.remote(self.make_work, block)] = (worker, block)

    def _outcome(self, ref: Any, worker: Any, block: list[Job]) -> Outcome:
        try:
            outcome: Outcome = self.ray.get(ref)
            return outcome
        except self.ray.exceptions.RayError as error:
            held = block + [job for other, jobs in self.flying.values() if other is worker for job in jobs]
            held.sort(key=lambda job: job.index)
            where = f"it had {held[0]} to {held[-1]}" if held else "it made the work"
            lost = isinstance(error, self.ray.exceptions.RayActorError)
            how = f"was lost {RETRIES + 1} times" if lost else "failed"
            why = type(error).__name__ if lost else str(error).strip().splitlines()[-1]
            raise ScoreError(
                f"a Ray worker {how} while {self.what}: {why}\n"
                f"  {where}; run the same command again, or without ray= to see more"
            ) from error

    def _compare(self, ready: Outcome) -> None:
        found = differences(ready.versions, self.versions)
        if found:
            warn(f"a Ray worker has other versions, so numbers may differ in the last bits: {'; '.join(found)}")


@contextmanager
def _connected(cluster: RayCluster) -> Iterator[Any]:
    """Ray, connected; what was started or connected here ends here."""
    import logging

    try:
        import ray
    except ImportError as error:
        raise ScoreError(f"ray= needs Ray, which cannot be loaded: {error}\n  pip install 'lmm-lens[ray]'") from error
    if ray.is_initialized():
        if cluster.address not in (None, "auto"):
            raise ScoreError(
                f"this process is connected to a Ray cluster already, and cannot go to {cluster.address!r}\n"
                "  call ray.shutdown() first, or give ray='auto' to use that one"
            )
        yield ray
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if cluster.address is None:
            n = cluster.workers or 2
            ray.init(
                "local",
                num_cpus=max(1, int(n * cluster.num_cpus + 0.999)),
                resources={name: n * amount for name, amount in cluster.resources.items()},
                include_dashboard=False,
                **quiet,
            )
        else:
            ray.init(cluster.address, **quiet)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise ScoreError(
            f"no Ray cluster can be used at {cluster.address or 'this machine'!r}: {str(error).splitlines()[0]}\n"
            "  start one with `ray start --head`, or give a number of workers to use this machine"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def _crew(ray: Any, cluster: RayCluster, what: str) -> Iterator[list[Any]]:
    """The workers; they end here."""
    kind = ray.remote(
        num_cpus=cluster.num_cpus,
        num_gpus=cluster.num_gpus,
        resources=dict(cluster.resources),
        max_restarts=RESTARTS,
        max_task_retries=RETRIES,
    )(Worker)
    crew = [kind.remote(torch.get_num_threads(), what) for _ in range(_how_many(ray, cluster))]
    try:
        yield crew
    finally:
        for worker in crew:
            ray.kill(worker)


def _how_many(ray: Any, cluster: RayCluster) -> int:
    """Workers to ask for.

    Warns if a cluster has no room for one now, because it may grow. ScoreError: this machine has not.
    """
    total, free = ray.cluster_resources(), ray.available_resources()
    lacking = [name for name, amount in cluster.needs.items() if amount > total.get(name, 0)]
    said = ", ".join(f"{name} {total.get(name, 0):g}, needed {cluster.needs[name]:g}" for name in lacking)
    if lacking and cluster.address is None:
        raise ScoreError(f"there is no room here for a Ray worker: {said}\n  ask for less, or give a cluster's address")
    if lacking:
        warn(f"the Ray cluster has no room for a worker yet and the sweep waits for it: {said}")
    if cluster.workers is not None:
        return cluster.workers
    fits = [int(free.get(name, 0) / amount) for name, amount in cluster.needs.items() if amount]
    return max(1, min(fits, default=2))
