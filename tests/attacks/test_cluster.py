"""A real Ray cluster that loses nodes and workers, and gains some: a head without cores, and nodes of one core."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from lmm_lens.errors import ScoreError
from lmm_lens.runs import RayCluster, RunFolder, stream
from tests.support.sweeps import assert_same, expected, key_of, work

N = 60


@pytest.fixture(scope="module")
def head() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80 * 2**20})
    ray.init(cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def nodes(head: Any) -> Iterator[Any]:
    """Adds nodes; those that are left go with the test."""
    added: list[Any] = []

    def add() -> Any:
        added.append(head.add_node(num_cpus=1, object_store_memory=80 * 2**20))
        return added[-1]

    yield add
    for node in added:
        if node in head.list_all_nodes():
            head.remove_node(node, allow_graceful=False)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    with RunFolder(tmp_path / "run", "test", {}) as folder:
        yield folder


def making(path: Path, seconds: float = 0.03) -> Any:
    """Work that takes its time; each worker leaves its process id."""
    path.mkdir()

    def make() -> Any:
        (path / str(os.getpid())).touch()

        def slow(item: int) -> Any:
            time.sleep(seconds)
            return work(item)

        return slow

    return make


def when(at: int, event: Any, ready: Any = lambda: True) -> Iterator[int]:
    """The items; before one of them something happens, once it may."""
    for item in range(N):
        if item == at:
            until(ready)
            event()
        yield item


def until(ready: Any) -> None:
    end = time.monotonic() + 40
    while not ready():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


@pytest.mark.parametrize("graceful", [False, True], ids=["pulled out", "drained"])
def test_a_node_that_goes_costs_only_time(head, nodes, folder, tmp_path, graceful):
    first, _ = nodes(), nodes()
    until(lambda: ray.available_resources().get("CPU", 0) == 2)
    pids = tmp_path / "pids"
    items = when(20, lambda: head.remove_node(first, allow_graceful=graceful), lambda: len(os.listdir(pids)) == 2)
    with pytest.warns(UserWarning, match=r"a Ray worker was lost while sweeping \(Actor\w+\); .* to another"):
        found = stream(items, making(pids, 0.25), key_of, folder, ray="auto", seconds_per_part=0.5)
    assert_same(found.tensors(), expected(range(N)))


def test_a_node_that_joins_is_put_to_work(nodes, folder, tmp_path):
    nodes()
    pids = tmp_path / "pids"

    def until_two_work() -> Iterator[int]:
        yield from when(10, nodes)
        item, end = N, time.monotonic() + 60
        while len(os.listdir(pids)) < 2 and time.monotonic() < end:
            yield item
            item += 1

    found = stream(until_two_work(), making(pids, 0.1), key_of, folder, ray="auto", seconds_per_part=0.5)
    assert len(os.listdir(pids)) == 2
    assert_same(found.tensors(), expected(range(found.n_items)))


def test_without_any_worker_the_sweep_ends_and_keeps_what_it_has(head, nodes, folder, tmp_path):
    only = nodes()
    items = when(30, lambda: head.remove_node(only, allow_graceful=False))
    wanted = RayCluster(address="auto", workers=1, patience=3)
    with (
        pytest.warns(UserWarning, match="a Ray worker was lost"),
        pytest.raises(ScoreError, match=r"no Ray worker is left while sweeping, and none came for 3 s\n  what is fini"),
    ):
        stream(items, making(tmp_path / "pids"), key_of, folder, ray=wanted, seconds_per_part=0.1)
    assert folder.n_items > 0
    folder.close()
    with RunFolder(tmp_path / "run", "test", {}) as again:
        assert_same(stream(range(N), lambda: work, key_of, again).tensors(), expected(range(N)))


def test_a_worker_that_stands_still_is_given_up(nodes, folder, tmp_path):
    nodes()
    pids = tmp_path / "pids"
    items = when(20, lambda: os.kill(int(os.listdir(pids)[0]), signal.SIGSTOP), lambda: len(os.listdir(pids)) == 1)
    wanted = RayCluster(address="auto", workers=1, patience=4)
    with pytest.warns(UserWarning, match=r"a Ray worker was lost while sweeping \(no answer for \d+ s\)"):
        found = stream(items, making(pids), key_of, folder, ray=wanted, seconds_per_part=0.2)
    assert_same(found.tensors(), expected(range(N)))
    assert len(os.listdir(pids)) == 2
