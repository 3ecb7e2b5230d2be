"""The same sweep over Ray, and what may be asked of it; `tests/attacks` kills its workers."""

import sys
import time
from dataclasses import replace

import pytest

from lmm_lens.errors import ScoreError
from lmm_lens.runs import RayCluster, RunFolder, stream
from lmm_lens.runs.ray_cluster import check_listening, refusal
from tests.support.sweeps import assert_same, expected, key_of, local_cluster, make_work, making_pids, pids

N = 60


pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def cluster():
    with local_cluster() as address:
        yield address


@pytest.fixture
def folder(tmp_path):
    with RunFolder(tmp_path / "run", "test", {}) as folder:
        yield folder


def test_two_workers_of_this_machine_give_the_same_numbers_and_nothing_stays(folder, tmp_path, capfd):
    import ray

    (tmp_path / "pids").mkdir()
    folder.write(3, [key_of(3), key_of(4)], expected([3, 4]))
    ahead = []

    def items():
        for item in range(N):
            while item == N // 2 and len(pids(tmp_path / "pids")) < 2:  # the first may be quick enough to do everything
                time.sleep(0.05)
            ahead.append(item - folder.n_items)
            yield item

    found = stream(items(), making_pids(tmp_path / "pids"), key_of, folder, ray=2, seconds_per_part=0.0)
    assert_same(found.tensors(), expected(range(N)))
    assert [found.key(index) for index in range(N)] == list(map(key_of, range(N)))
    assert len(pids(tmp_path / "pids")) == 2
    assert max(ahead) <= 2 * 2 * 8
    assert not ray.is_initialized()
    assert capfd.readouterr() == ("", "")


# ---------------------------------------------------------------------- what may be asked


def test_an_error_while_the_work_is_made_is_raised_here(cluster):
    def make():
        raise FileNotFoundError("no such model")

    with pytest.raises(FileNotFoundError, match="no such model"):
        stream(range(N), make, key_of, None, ray=cluster)


@pytest.mark.filterwarnings("error:the Ray cluster has no room")
def test_no_room_for_a_worker_is_told(cluster):
    wanted = RayCluster(workers=1, resources={"microscope": 1})
    with pytest.raises(ScoreError, match=r"no room here for a Ray worker: microscope 0, needed 1\n  ask for less"):
        stream(range(3), make_work, key_of, None, ray=wanted)
    with pytest.raises(UserWarning, match="and the sweep waits for it: microscope 0, needed 1"):
        stream(range(3), make_work, key_of, None, ray=replace(wanted, address="auto"))


def test_another_cluster_than_the_connected_one_is_refused(cluster):
    with pytest.raises(ScoreError, match=r"connected to a Ray cluster already, and cannot go to '10.0.0.1:6379'"):
        stream(range(3), make_work, key_of, None, ray="10.0.0.1:6379")


@pytest.mark.parametrize("given", [True, 1.5, [2]])
def test_what_is_no_cluster_is_refused(given):
    with pytest.raises(ScoreError, match="expected ray= as a number of local workers, the address"):
        stream(range(3), make_work, key_of, None, ray=given)


def test_impossible_workers_are_refused():
    with pytest.raises(ScoreError, match="at least 1, given 0"):
        stream(range(3), make_work, key_of, None, ray=0)
    with pytest.raises(ScoreError, match="cannot need -1 GPU"):
        RayCluster(num_gpus=-1)


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "no.such.host.invalid:6379", "[::1]:99999"])
def test_an_address_where_nothing_listens_is_told_at_once(address):
    with pytest.raises(ScoreError, match=r"no Ray cluster can be used at .*: nothing listens there .*\n  start one"):
        check_listening(address)


@pytest.mark.parametrize(
    ("address", "error", "advice"),
    [
        ("10.0.0.1:6379", RuntimeError("Unauthenticated: no token"), "the cluster asks for a token: set RAY_AUTH_MODE"),
        (
            "ray://10.0.0.1:10001",
            ConnectionError("ray client connection timeout"),
            "if the cluster asks for a token, set",
        ),
        ("auto", ConnectionError("Could not find any running Ray instance"), "start one with `ray start --head`, or"),
        ("ray://10.0.0.1:10001", ImportError("no grpc"), "pip install 'lmm-lens[ray]'"),
    ],
)
def test_what_to_do_follows_from_why_ray_could_not_connect(address, error, advice):
    first, second = refusal(address, error).splitlines()
    assert first == f"no Ray cluster can be used at {address!r}: {error}"
    assert second.startswith(f"  {advice}")


@pytest.mark.parametrize("address", ["auto", "local"])
def test_names_are_left_to_ray(address):
    check_listening(address)


def test_a_missing_ray_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ScoreError, match=r"ray= needs Ray.*\n  pip install 'lmm-lens\[ray\]'"):
        stream(range(3), make_work, key_of, None, ray=2)


def test_a_finished_sweep_starts_no_cluster(monkeypatch, folder):
    stream(range(3), make_work, key_of, folder)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert stream(range(3), make_work, key_of, folder, ray=2).n_items == 3
