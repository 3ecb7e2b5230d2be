"""A small sweep whose right answer is known without the code under test, here and on Ray workers."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

SIZE = (3, 5)


def work(item: int) -> dict[str, torch.Tensor]:
    """Numbers that hang on every bit of the item's own random matrix."""
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(item))
    effect = torch.tanh(x @ x.T / 8)[: SIZE[0], : SIZE[1]]
    return {"effect": effect, "index": torch.tensor(item)}


def make_work():
    return work


def key_of(item: int) -> str:
    return f"item-{item}"


def expected(items) -> dict[str, torch.Tensor]:
    """What a sweep must give: a plain loop."""
    found = [work(item) for item in items]
    return {name: torch.stack([each[name] for each in found]) for name in found[0]}


def assert_same(found, wanted) -> None:
    """Bit for bit."""
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert found[name].numpy().tobytes() == tensor.numpy().tobytes()


# ---------------------------------------------------------------------- on Ray workers


@contextmanager
def local_cluster() -> Iterator[str]:
    """A cluster of two workers' size that is running already: its address."""
    import ray

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 2**20)
    yield "auto"
    ray.shutdown()


def pids(path: Path) -> list[int]:
    return [int(name) for name in os.listdir(path)]


def making_pids(path: Path, seconds: float = 0.0):
    """Work that is made once in each worker, which leaves its process id."""
    threads = torch.get_num_threads()

    def make():
        (path / str(os.getpid())).touch(exist_ok=False)
        print("what a worker says stays in Ray's logs")
        if torch.get_num_threads() != threads:  # no `assert`, whose rewritten form does not travel
            raise RuntimeError("the worker has other threads")

        def slow(item):
            time.sleep(seconds)
            return work(item)

        return slow

    return make
