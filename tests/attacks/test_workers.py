"""Real Ray workers that are killed, that fail, and that do a sweep over heads: the numbers of one process."""

import os
import re
import signal

import pytest
import torch

from lmm_lens import HeadEffects, data, head_effects
from lmm_lens.errors import ScoreError
from lmm_lens.runs import RayCluster, RunFolder, ray_crew, stream
from tests.support.sweeps import assert_same, expected, key_of, local_cluster, make_work, making_pids, pids, work

pytestmark = pytest.mark.attack

N = 60


@pytest.fixture(scope="module")
def cluster():
    with local_cluster() as address:
        yield address


@pytest.fixture
def folder(tmp_path):
    with RunFolder(tmp_path / "run", "test", {}) as folder:
        yield folder


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def test_a_killed_worker_costs_only_time(cluster, two_threads, folder, tmp_path):
    (tmp_path / "pids").mkdir()
    victims = []

    def items():
        for item in range(N):
            if item == 20:
                victims.append(pids(tmp_path / "pids")[0])
                os.kill(victims[0], signal.SIGKILL)
            yield item

    make = making_pids(tmp_path / "pids", 0.02)
    with pytest.warns(UserWarning, match=r"^a Ray worker was lost while sweeping \(ActorDiedError\); .* to another$"):
        found = stream(items(), make, key_of, folder, ray=RayCluster(workers=1), seconds_per_part=0.2)
    assert_same(found.tensors(), expected(range(N)))
    assert len(pids(tmp_path / "pids")) == 2  # another came in its place
    assert found.n_items == N


def test_an_error_of_the_work_is_raised_here_and_not_tried_again(cluster, folder, tmp_path):
    def make():
        def failing(item):
            if item == 31:
                with open(tmp_path / "tried", "a") as file:
                    file.write("x")
                raise KeyError("bad picture")
            return work(item)

        return failing

    with pytest.raises(KeyError, match="bad picture") as caught:
        stream(range(N), make, key_of, folder, ray=RayCluster(workers=1), what="ablating")
    assert caught.value.__notes__[0] == "while ablating, item 31 ('item-31')"
    assert "in failing" in caught.value.__notes__[1]
    assert (tmp_path / "tried").read_text() == "x"
    assert 0 in folder
    assert 31 not in folder
    assert_same(stream(range(N), make_work, key_of, folder).tensors(), expected(range(N)))  # goes on without Ray


def test_a_worker_that_dies_whenever_it_opens_the_model_ends_the_sweep(cluster, monkeypatch):
    """As where a model takes more memory than there is: no item is to blame, and no worker ever gets one."""
    monkeypatch.setattr(ray_crew, "RETRIES", 1)

    def make():
        os.kill(os.getpid(), signal.SIGKILL)

    with (
        pytest.warns(UserWarning, match=r"a Ray worker was lost while sweeping .*; it had no items yet"),
        pytest.raises(ScoreError, match=r"2 Ray workers, one after the other, were lost before they had opened the"),
    ):
        stream(range(N), make, key_of, None, ray=RayCluster(workers=1))


def test_an_item_that_kills_every_worker_ends_the_sweep_and_loses_nothing(cluster, folder, monkeypatch):
    monkeypatch.setattr(ray_crew, "RETRIES", 1)

    def make():
        def deadly(item):
            if item == 10:
                os.kill(os.getpid(), signal.SIGKILL)
            return work(item)

        torch.set_num_threads(2)  # not as here: a version that differs
        return deadly

    with (
        pytest.raises(ScoreError) as caught,
        pytest.warns(UserWarning, match="a Ray worker was lost while sweeping"),
        pytest.warns(UserWarning, match=r'other versions, .* last bits: torch threads: "2" there, "1" here$'),
    ):
        stream(range(N), make, key_of, folder, ray=1, seconds_per_part=0.0)
    assert re.fullmatch(
        r"a Ray worker was lost 2 times while sweeping item 10 \('item-10'\): Actor(Died|Unavailable)Error\n"
        r"  what is finished is safe; run the same command without ray= to see more",
        str(caught.value),
    )
    assert folder.n_items > 0
    assert 10 not in folder


# ---------------------------------------------------------------------- a sweep over heads


def same(one: HeadEffects, other: HeadEffects) -> bool:
    tensors = (
        (getattr(one.outcomes, name), getattr(other.outcomes, name)) for name in ("logits", "log_sum", "said", "marks")
    )
    return one.ids == other.ids and all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in tensors)


def test_on_a_cluster_the_numbers_are_the_same(lens, tmp_path):
    # as tensors: a worker may have another image processor installed than the tests
    prompts, answers = [sample.prompt(lens) for sample in data.shapes(n=4, seed=2)], [(3 + i, 50 + i) for i in range(4)]
    here, there = (
        head_effects(lens, prompts, rows="after_image", answers=answers, ray=ray, folder=tmp_path / f"{ray}")
        for ray in (None, 1)  # tests/runs has several workers, with cheaper work
    )
    assert same(there, here)
    assert same(HeadEffects.open(tmp_path / "1"), here)
