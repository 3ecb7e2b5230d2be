"""The same stream over Ray: a worker with a model of its own each, results back to here.

Blocks of items that follow one another are handed out a few at a time, so a stream is never read far ahead.
A block that lost its worker goes to a living one, item by item, so that an item that kills workers is found. In the
place of a lost worker another is asked for, which Ray starts as soon as there is room.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import torch

from ..errors import ScoreError
from ..warnings import warn
from .job import Done, Job, MakeWork
from .manifest import current_versions, differences
from .ray_cluster import RayCluster, connected
from .ray_worker import Outcome, Worker

BLOCK = 8
"""Items in one task, at most; fewer where they take long, so that a part is not held up."""
IN_FLIGHT = 2
"""Tasks of a worker: one it works on, one that waits for it."""
RETRIES = 3
"""How often an item is tried again after it lost its worker."""
SLOWER = 10
"""A worker that takes so many times as long as any block before, and longer than the patience, is given up."""
GLANCE = 2.0
"""Seconds after which the cluster is looked at, where no answer comes."""


def compute(
    cluster: RayCluster, make_work: MakeWork, todo: Iterator[Job], what: str, seconds: float
) -> Generator[Done]:
    """The results, in whatever order they come in.

    Args:
        cluster: which workers to use.
        make_work: sent to each worker, and called there once.
        todo: the items.
        what: is being done, in words.
        seconds: that a block should take, at most.

    Raises:
        ScoreError: Ray is missing, its cluster cannot be reached, an item lost every worker it was given to, or no
            worker is left.
        Exception: of the work, with a note that names the item.
    """
    first = next(todo, None)
    if first is None:
        return
    with connected(cluster) as ray:
        shared = ray.put(make_work)  # once for all
        crew = Crew(ray, cluster, shared, chain([first], todo), seconds, what)
        try:
            yield from crew.results()
        finally:
            crew.dismiss()


@dataclass(eq=False)
class Hand:
    """One worker.

    Attributes:
        actor: Ray's handle.
        starting: what answers when it is ready; None from then on.
        flying: its blocks under way by what will answer, the one that it works on first.
        since: when it began with that.
        is_alone: whether it works on an item that lost a worker before, by itself, so that it is known which one does.
    """

    actor: Any
    starting: Any = None
    flying: dict[Any, list[Job]] = field(default_factory=dict)
    since: float = 0.0
    is_alone: bool = False


class Crew:
    """Hands out blocks and takes results until there are no more.

    Args:
        ray: the module, connected.
        wanted: how many workers, and what each needs.
        make_work: Ray's reference to what makes the work.
        todo: the items.
        seconds: that a block should take, at most.
        what: is being done, in words.
    """

    def __init__(
        self, ray: Any, wanted: RayCluster, make_work: Any, todo: Iterator[Job], seconds: float, what: str
    ) -> None:
        self.ray, self.wanted, self.make_work, self.what = ray, wanted, [make_work], what
        self.todo, self.again, self.seconds = todo, deque[Job](), seconds
        self.size = 1  # until it is known how long an item takes
        self.longest, self.losses = 0.0, Counter[int]()
        self.versions, self.hands = current_versions(), list[Hand]()
        self.alone_since: float | None = None
        self.failed_starts = 0  # workers lost one after the other before they were ready
        self.looked = time.monotonic()
        for _ in range(_how_many(ray, wanted)):
            self._hire()

    # ------------------------------------------------------------------ workers

    def _hire(self) -> None:
        needs = self.wanted
        kind = self.ray.remote(
            num_cpus=needs.num_cpus, num_gpus=needs.num_gpus, resources=dict(needs.resources), max_restarts=0
        )(Worker)
        actor = kind.remote(torch.get_num_threads(), self.what)
        self.hands.append(Hand(actor, actor.ready.remote(self.make_work)))

    def dismiss(self) -> None:
        """End all workers."""
        for hand in self.hands:
            self.ray.kill(hand.actor)
        self.hands.clear()

    def _lose(self, hand: Hand, why: str) -> None:
        """Give a worker up, its items to others, and ask for another worker.

        Raises:
            ScoreError: one of the items has lost too many workers, or none lives long enough to open the model.
        """
        self.hands.remove(hand)
        self.ray.kill(hand.actor)
        self.failed_starts += hand.starting is not None
        if self.failed_starts > RETRIES:
            raise ScoreError(
                f"{self.failed_starts} Ray workers, one after the other, were lost before they had opened the model: "
                f"{why}\n  a worker may lack memory or a device for it; run the same command without ray= to see more"
            )
        blocks = list(hand.flying.values())
        held = [job for block in blocks for job in block]
        self.losses.update(job.index for block in blocks[:1] for job in block)  # it worked on the first alone
        worst = max(blocks[0], key=lambda job: self.losses[job.index]) if blocks else None
        if worst is not None and self.losses[worst.index] > RETRIES:
            raise ScoreError(
                f"a Ray worker was lost {RETRIES + 1} times while {self.what} {worst}: {why}\n"
                "  what is finished is safe; run the same command without ray= to see more"
            )
        where = f"{_said(held)} {'goes' if len(held) == 1 else 'go'} to another" if held else "it had no items yet"
        warn(f"a Ray worker was lost while {self.what} ({why}); {where}")
        self.again.extend(sorted(held, key=lambda job: job.index))
        self._hire()

    def _look(self) -> None:
        """Now and then: give up who is stuck, welcome nodes that joined, end where nobody is left.

        Raises:
            ScoreError: there is no worker, and none came.
        """
        now = time.monotonic()
        limit = max(self.wanted.patience, SLOWER * self.longest)
        for hand in [each for each in self.hands if each.flying and now - each.since > limit]:
            self._lose(hand, f"no answer for {now - hand.since:.0f} s")
        if any(hand.starting is None for hand in self.hands):
            self.alone_since = None
            self._grow()
            return
        if not self.losses or self._has_room():
            return  # a worker is starting, or waits for a cluster that may grow
        self.alone_since = self.alone_since or now
        if now - self.alone_since > self.wanted.patience:
            raise ScoreError(
                f"no Ray worker is left while {self.what}, and none came for {self.wanted.patience:g} s\n"
                "  what is finished is safe; run the same command again when the cluster has nodes"
            )

    def _has_room(self) -> bool:
        total = self.ray.cluster_resources()
        return all(amount <= total.get(name, 0) for name, amount in self.wanted.needs.items())

    def _grow(self) -> None:
        """Where all workers are wanted that a cluster has room for, take those that there is room for now."""
        waiting = any(hand.starting is not None for hand in self.hands)
        if self.wanted.workers is None and self.wanted.address is not None and not waiting:
            for _ in range(_fitting(self.ray, self.wanted)):
                self._hire()

    # ------------------------------------------------------------------ blocks

    def results(self) -> Iterator[Done]:
        """What came of the items, in whatever order.

        Raises:
            ScoreError: an item has lost too many workers, no worker is left, or the cluster is gone.
            Exception: of the work, with a note that names the item.
        """
        while True:
            waiting = [hand.starting for hand in self.hands if hand.starting is not None]
            waiting += [next(iter(hand.flying)) for hand in self.hands if hand.flying]
            ready, _ = self._wait(waiting)
            if time.monotonic() - self.looked > GLANCE:
                self._look()
                self.looked = time.monotonic()
                if not ready or not any(ready[0] == each.starting or ready[0] in each.flying for each in self.hands):
                    continue  # given up in the meantime
            if not ready:
                continue
            (ref,) = ready  # through ray:// another object than the one that was waited for, and equal to it
            hand = next(each for each in self.hands if ref == each.starting or ref in each.flying)
            try:
                outcome: Outcome = self.ray.get(ref)
            except self.ray.exceptions.RayError as error:
                self._lose(hand, _reason(error))
                continue
            yield from self._take(hand, ref, outcome)
            if not any(each.flying for each in self.hands) and not self.again:
                return  # all done; other workers may still be waiting for room

    def _wait(self, refs: list[Any]) -> tuple[list[Any], list[Any]]:
        if not refs:
            time.sleep(GLANCE)
            return [], []
        try:
            found: tuple[list[Any], list[Any]] = self.ray.wait(refs, timeout=GLANCE)
        except (ConnectionError, self.ray.exceptions.RaySystemError) as error:
            raise ScoreError(
                f"the Ray cluster was lost while {self.what}: {str(error).strip().splitlines()[0]}\n"
                "  what is finished is safe; run the same command again"
            ) from error
        return found

    def _take(self, hand: Hand, ref: Any, outcome: Outcome) -> Iterator[Done]:
        """The results of one answer; the worker gets its next block."""
        if ref == hand.starting:
            hand.starting, self.failed_starts = None, 0
            found = differences(outcome.versions, self.versions) if outcome.error is None else []
            if found:
                warn(f"a Ray worker has other versions, so numbers may differ in the last bits: {'; '.join(found)}")
        else:
            del hand.flying[ref]
            self.longest = max(self.longest, time.monotonic() - hand.since)
            hand.since = time.monotonic()
        yield from outcome.done
        if outcome.error is not None:
            raise outcome.error
        if outcome.done:
            per_item = outcome.seconds / len(outcome.done)
            self.size = min(BLOCK, max(1, int(self.seconds / IN_FLIGHT / max(per_item, 1e-9))))
        for each in self.hands:  # also those that had nothing to do when items came back
            while each.starting is None and self._takes_more(each) and self._send(each):
                pass

    def _takes_more(self, hand: Hand) -> bool:
        if not hand.flying:
            return True
        return len(hand.flying) < IN_FLIGHT and not hand.is_alone and not self.again

    def _send(self, hand: Hand) -> bool:
        """Give a worker its next block; False where there is none."""
        hand.is_alone = bool(self.again)
        block = [self.again.popleft()] if self.again else list(islice(self.todo, self.size))
        if not block:
            return False
        if not hand.flying:
            hand.since = time.monotonic()
        hand.flying[hand.actor.run.remote(self.make_work, block)] = block
        return True


def _said(jobs: list[Job]) -> str:
    return str(jobs[0]) if len(jobs) == 1 else f"{len(jobs)} items, {jobs[0]} to {jobs[-1]},"


def _reason(error: Exception) -> str:
    name = type(error).__name__
    said = str(error).strip().splitlines()
    return name if "Actor" in name or not said else f"{name}: {said[-1]}"


def _how_many(ray: Any, cluster: RayCluster) -> int:
    """Workers to ask for.

    Warns if a cluster has no room for one now, because it may grow. ScoreError: this machine has not.
    """
    total = ray.cluster_resources()
    lacking = [name for name, amount in cluster.needs.items() if amount > total.get(name, 0)]
    said = ", ".join(f"{name} {total.get(name, 0):g}, needed {cluster.needs[name]:g}" for name in lacking)
    if lacking and cluster.address is None:
        raise ScoreError(f"there is no room here for a Ray worker: {said}\n  ask for less, or give a cluster's address")
    if lacking:
        warn(f"the Ray cluster has no room for a worker yet and the sweep waits for it: {said}")
    if cluster.workers is not None:
        return cluster.workers
    return max(1, _fitting(ray, cluster, 2))


def _fitting(ray: Any, cluster: RayCluster, default: int = 0) -> int:
    """For how many workers there is room now; the default where they need nothing."""
    free = ray.available_resources()
    return min((int(free.get(name, 0) / amount) for name, amount in cluster.needs.items() if amount), default=default)
