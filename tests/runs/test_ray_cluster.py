"""The way to a cluster that answers badly: faults put into `ray.init`, with something that listens at the address."""

import socket

import pytest

from lmm_lens.errors import ScoreError
from lmm_lens.runs import RayCluster
from lmm_lens.runs.ray_cluster import connected

DIED = ConnectionAbortedError(
    "Initialization failure from server:\nTraceback (most recent call last):\n  File ...\n"
    "RuntimeError: Starting Ray client server failed. See ray_client_server_23000.err for detailed logs.\n\n"
)
"""What Ray 2.x raises where the server that it forks for a client dies at once."""


@pytest.mark.parametrize("n_deaths", [0, 1, 2, 3])
def test_a_server_that_dies_before_it_begins_is_asked_for_again(monkeypatch, n_deaths):
    left, asked = [DIED] * n_deaths, []

    def init(address, **options):
        asked.append(address)
        if left:
            raise left.pop()

    monkeypatch.setattr("ray.init", init)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"ray://127.0.0.1:{listening.getsockname()[1]}"
        if n_deaths < 3:
            with connected(RayCluster(address=address)):
                pass
        else:
            with (
                pytest.raises(ScoreError, match=r"RuntimeError: Starting Ray client .* logs.\n  the logs of its head"),
                connected(RayCluster(address=address)),
            ):
                pass
    assert asked == [address] * min(n_deaths + 1, 3)


def test_other_reasons_are_told_at_once(monkeypatch):
    asked = []

    def init(address, **options):
        asked.append(address)
        raise ConnectionAbortedError("Initialization failure from server:\nTraceback ...\nValueError: another version")

    monkeypatch.setattr("ray.init", init)
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        pytest.raises(ScoreError, match=r": ValueError: another version\n  if the cluster asks for a token"),
        connected(RayCluster(address=f"ray://127.0.0.1:{listening.getsockname()[1]}")),
    ):
        pass
    assert len(asked) == 1
