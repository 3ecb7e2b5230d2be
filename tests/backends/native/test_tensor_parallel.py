"""A model whose every layer is divided among two processes gives what it gives in one."""

import os
import socket
import subprocess
import sys

import pytest
import torch

from tests.backends.native import parallel_worker
from tests.backends.native.parallel_worker import answers
from tests.support.cases import close

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("parallel")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    started = []
    for rank in range(2):
        at = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, parallel_worker.__file__, str(folder / f"{rank}.pt")]
        started.append(subprocess.Popen(command, env=os.environ | at | here, stderr=subprocess.PIPE, text=True))
    try:
        said = [process.communicate(timeout=120)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def whole(lens):
    return answers(lens)


def test_both_processes_find_what_one_finds(processes, whole):
    for name in ("zeroed", "even", "moved", "blind", "patched"):
        assert (whole[name] - whole["plain"]).abs().max() > 1e-3, f"{name} does nothing, so nothing was tested"
    for found in processes:
        assert found["answers"].keys() == whole.keys()
        for name, expected in whole.items():
            given = found["answers"][name]
            if isinstance(expected, torch.Tensor):
                close(given, expected, 3e-5)
            else:
                assert given == expected, name


def test_what_cannot_be_done_right_is_refused(processes):
    for found in processes:
        assert "no gradients pass" in found["refusals"]["gradients"]
        assert "divided among processes" in found["refusals"]["bridge"]
