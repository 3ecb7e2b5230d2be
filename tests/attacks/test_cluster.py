"""A real Ray cluster that loses nodes and workers, and gains some: a head without cores, and nodes of one core."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from lmm_lens.errors import ScoreError
from lmm_lens.runs import RayCluster, RunFolder, stream
from tests.support.sweeps import assert_same, expected, key_of, work

pytestmark = pytest.mark.attack
COUNTED = "events on a real cluster that changed no number"

N = 60
PORT = 9917  # of Ray's client server; its workers' ports begin at 10,002
LONG = 240
"""Seconds that a busy machine may take for anything; nothing here takes so long by itself."""


@pytest.fixture(scope="module")
def head() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    arguments = {"num_cpus": 0, "object_store_memory": 80 * 2**20, "ray_client_server_port": PORT}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # a token may lie on this machine from another cluster
        cluster = Cluster(initialize_head=True, head_node_args=arguments)
        ray.init(cluster.address, log_to_driver=False)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def nodes(head: Any) -> Iterator[Any]:
    """Adds nodes; those that are left go with the test."""
    added: list[Any] = []

    def add() -> Any:
        before = ray.cluster_resources().get("CPU", 0)
        added.append(head.add_node(num_cpus=1, object_store_memory=80 * 2**20))
        until(lambda: ray.cluster_resources().get("CPU", 0) > before)
        return added[-1]

    yield add
    for node in added:
        if node in head.list_all_nodes():
            head.remove_node(node)
    until(lambda: ray.cluster_resources().get("CPU", 0) == 0)  # what is gone is not counted by the next test


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    with RunFolder(tmp_path / "run", "test", {}) as folder:
        yield folder


def making(path: Path, seconds: float = 0.03) -> Any:
    """Work that takes its time; each worker leaves its process id with its first item."""
    path.mkdir()

    def make() -> Any:
        def slow(item: int) -> Any:
            (path / str(os.getpid())).touch()
            time.sleep(seconds)
            return work(item)

        return slow

    return make


def items_around(event: Any, pids: Path, workers: int) -> Iterator[int]:
    """Items until so many workers have done some, then the event, then as many as can be lost with a worker."""
    end, item = time.monotonic() + LONG, 0
    while len(os.listdir(pids)) < workers:
        assert time.monotonic() < end, "the workers never came"
        yield item
        item += 1
    event()
    yield from range(item, item + N)


def until(ready: Any) -> None:
    end = time.monotonic() + LONG
    while not ready():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


@pytest.mark.parametrize("graceful", [False, True], ids=["pulled out", "drained"])
def test_a_node_that_goes_costs_only_time(head, nodes, folder, tmp_path, graceful):
    first, _ = nodes(), nodes()
    make = making(tmp_path / "pids", 0.25)
    items = items_around(lambda: head.remove_node(first, allow_graceful=graceful), tmp_path / "pids", 2)
    with pytest.warns(UserWarning, match=r"a Ray worker was lost while sweeping \(Actor\w+\); ") as warned:
        found = stream(items, make, key_of, folder, ray="auto", seconds_per_part=0.5)
    assert any(str(each.message).endswith("to another") for each in warned)
    assert_same(found.tensors(), expected(range(found.n_items)))


def test_a_node_that_joins_is_put_to_work(nodes, folder, tmp_path):
    nodes()
    pids = tmp_path / "pids"
    make = making(pids, 0.1)

    def items() -> Iterator[int]:
        for last in items_around(nodes, pids, 1):
            yield last
        yield from (last + 1 + each for each in items_around(lambda: None, pids, 2))

    found = stream(items(), make, key_of, folder, ray="auto", seconds_per_part=0.5)
    assert len(os.listdir(pids)) == 2
    assert_same(found.tensors(), expected(range(found.n_items)))


def test_without_any_worker_the_sweep_ends_and_keeps_what_it_has(head, nodes, folder, tmp_path):
    only, pids = nodes(), tmp_path / "pids"
    make = making(pids)
    items = items_around(lambda: head.remove_node(only, allow_graceful=False), pids, 1)
    wanted = RayCluster(address="auto", workers=1, patience=3)
    with (
        pytest.warns(UserWarning, match="a Ray worker was lost"),
        pytest.raises(ScoreError, match=r"no Ray worker is left while sweeping, and none came for 3 s\n  what is fini"),
    ):
        stream(items, make, key_of, folder, ray=wanted, seconds_per_part=0.1)
    assert folder.n_items > 0
    folder.close()
    with RunFolder(tmp_path / "run", "test", {}) as again:
        assert_same(stream(range(N), lambda: work, key_of, again).tensors(), expected(range(N)))


def test_a_worker_that_stands_still_is_given_up(nodes, folder, tmp_path):
    nodes()
    pids = tmp_path / "pids"
    make = making(pids)
    items = items_around(lambda: os.kill(int(os.listdir(pids)[0]), signal.SIGSTOP), pids, 1)
    wanted = RayCluster(address="auto", workers=1, patience=4)
    with pytest.warns(UserWarning, match=r"a Ray worker was lost while sweeping \(no answer for \d+ s\)"):
        found = stream(items, make, key_of, folder, ray=wanted, seconds_per_part=0.2)
    assert_same(found.tensors(), expected(range(found.n_items)))
    assert len(os.listdir(pids)) >= 2


AFAR = """
import sys
import torch
from lmm_lens.runs import stream

def squared(item):  # written here, so that it travels as it is
    return {"x": torch.tensor(item**2)}

found = stream(range(30), lambda: squared, str, None, ray=sys.argv[1])
assert found.tensors()["x"].tolist() == [item**2 for item in range(30)]
print("the same")
"""


def test_a_sweep_from_outside_the_cluster_finds_the_same(head, nodes):
    """By ray://, from a process that is no part of it."""
    nodes()
    command = [sys.executable, "-W", "ignore", "-c", AFAR, f"ray://127.0.0.1:{PORT}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONG, check=False)
    assert done.stdout.splitlines()[-1:] == ["the same"], done.stderr
