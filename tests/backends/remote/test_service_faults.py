# ruff: noqa: RET504  (a trace's block binds names; it cannot return)
"""What goes wrong on a real service can be made to go wrong here, and shows at the client as nnsight shows it."""

import gc
import time
from collections.abc import Iterator
from typing import Any

import nnsight
import pydantic
import pytest
import torch
import websocket
from nnsight.intervention.backends.remote import RemoteError

from tests.backends.remote.service import Service

INPUTS = {"input_ids": torch.tensor([[1, 5, 7, 8, 6]])}
# nnsight's own client, which these tests use, leaves the socket of a connection that was lost to the garbage collector
pytestmark = [
    pytest.mark.long,
    pytest.mark.usefixtures("known", "collected"),
    pytest.mark.filterwarnings("ignore:unclosed <socket"),
]


@pytest.fixture
def collected() -> Iterator[None]:
    """Its sockets are collected with the test that lost them, not with some test of this library."""
    yield
    gc.collect()


def ask(service: Service, model: Any) -> torch.Tensor:
    with model.trace(**INPUTS, remote=service.url):
        logits = model.output.logits.save()
    return logits


REFUSED = {
    "refuse": (503, "Failed to send request: The service is being redeployed"),
    "needs_key": (401, "Missing or invalid API key"),
    "version": (400, f"Client nnsight version {nnsight.__version__} is below the minimum supported"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_request_refused_at_the_door(service: Service, client_model: Any, kind: str) -> None:
    service.fault(kind)
    status, message = REFUSED[kind]
    with pytest.raises(RemoteError, match=message):
        ask(service, client_model)
    assert service.log()[-1]["http"] == status


def test_a_key_opens_the_door_and_is_not_written_down(
    service: Service, client_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nnsight.CONFIG.API, "APIKEY", "0123-secret")
    service.fault("needs_key")
    ask(service, client_model)
    entry = service.log()[-1]
    assert entry["api_key"] is True
    assert "ndif-api-key" in entry["headers"]
    assert "secret" not in str(service.log())


def test_a_malformed_key_is_quoted_back_as_ndif_does(
    service: Service, client_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nnsight.CONFIG.API, "APIKEY", "0123-secret")
    service.fault("bad_key")
    with pytest.raises(RemoteError, match="0123-secret"):
        ask(service, client_model)


def test_out_of_memory_comes_as_a_traceback(service: Service, client_model: Any) -> None:
    service.fault("error")
    with pytest.raises(RemoteError, match=r"^Traceback(.|\n)*OutOfMemoryError: CUDA out of memory") as caught:
        ask(service, client_model)
    assert str(caught.value).count("\n") == 1
    assert service.log()[-1]["status"] == "ERROR"


def test_a_dropped_websocket_is_no_remote_error(service: Service, client_model: Any) -> None:
    service.fault("drop", times=1)
    with pytest.raises(pydantic.ValidationError, match="EOF while parsing"):
        ask(service, client_model)
    assert ask(service, client_model).isfinite().all()  # it struck once


def test_a_fault_waits_for_its_turn(service: Service, client_model: Any) -> None:
    service.fault("refuse", after=1)
    ask(service, client_model)
    with pytest.raises(RemoteError):
        ask(service, client_model)
    service.fault(None)
    ask(service, client_model)


def test_an_unknown_fault_is_refused(service: Service) -> None:
    with pytest.raises(Exception, match="422"):
        service.fault("earthquake")


class Deadline:
    """A display that gives up: nnsight has no timeout, and calls refresh() ten times a second while it waits."""

    enabled = True

    def __init__(self, seconds: float) -> None:
        self.end, self.last, self.heard = time.monotonic() + seconds, "", list[str]()

    def update(self, response: Any) -> None:
        self.last = response.status.value
        self.heard.append(response.description)

    def refresh(self) -> None:
        if time.monotonic() > self.end:
            raise TimeoutError


def test_a_silent_service_can_be_left_and_still_serves_others(service: Service, client_model: Any) -> None:
    service.fault("hang", times=1)
    backend = client_model._remote_backend(service.url, True, None, False)
    backend.display = Deadline(0.5)
    with pytest.raises(TimeoutError), client_model.trace(**INPUTS, backend=backend):
        client_model.output.logits.save()
    assert backend.display.last == "RUNNING"
    assert ask(service, client_model).isfinite().all()


def test_jobs_wait_for_each_other(service: Service, client_model: Any) -> None:
    service.fault("slow", seconds=0.5, times=1)
    with client_model.trace(**INPUTS, remote=service.url, blocking=False):
        client_model.output.logits.save()
    backend = client_model._remote_backend(service.url, True, None, False)
    backend.display = waiting = Deadline(20)
    with client_model.trace(**INPUTS, backend=backend):
        client_model.output.logits.save()
    assert "Your job is at position 2 of the queue." in waiting.heard
    assert [entry["status"] for entry in service.log()[-2:]] == ["COMPLETED", "COMPLETED"]


def test_a_slow_queue(service: Service, client_model: Any) -> None:
    service.fault("slow", seconds=0.7)
    started = time.monotonic()
    ask(service, client_model)
    assert time.monotonic() - started > 0.7
    assert service.log()[-1]["seconds"] > 0.7


def test_a_service_that_dies_comes_back_on_its_port(fresh_service: Service, client_model: Any) -> None:
    url, expected = fresh_service.url, ask(fresh_service, client_model)
    fresh_service.fault("die")
    with pytest.raises((websocket.WebSocketException, pydantic.ValidationError)):
        ask(fresh_service, client_model)
    assert fresh_service.wait() == 17
    with pytest.raises(ConnectionRefusedError):
        ask(fresh_service, client_model)
    fresh_service.restart()
    assert fresh_service.url == url
    torch.testing.assert_close(ask(fresh_service, client_model), expected)
