"""Every way in which a job can fail has its text, in which the key is not; and the next call works."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import nnsight
import pytest
import torch
import websocket
from nnsight.schema.response import Status

from lmm_lens import Lens
from lmm_lens.backends.nnsight.remote import ServerBackend
from lmm_lens.errors import RemoteError
from tests.backends.remote.audit import SECRET
from tests.backends.remote.clients import REPO, fails, same_run
from tests.backends.remote.service import Service


@contextmanager
def when_running(act: Callable[[], object]) -> Iterator[None]:
    """Do something soon after a job has told the client that it runs, however long it took to get there."""
    note = ServerBackend.note

    def noted(self: ServerBackend, response: Any) -> Any:
        if response.status is Status.RUNNING:
            threading.Timer(0.2, act).start()
        return note(self, response)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ServerBackend, "note", noted)
        yield


@pytest.fixture
def works_again(served: Lens, native: Lens, pair: Any, service: Service, capsys: Any, caplog: Any) -> Iterator[None]:
    """When the test is over the service is healed, and the same lens runs; the key was never printed or logged."""
    yield
    service.fault(None)
    served._backend.timeout = 600.0
    same_run(served.run(pair[0]), native.run(pair[0]))
    assert SECRET not in "".join(capsys.readouterr()) + caplog.text + str(service.log()) + service.errors()


def test_no_service(pair: Any, sent: list) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    lens = Lens.demo(backend="nnsight", remote=address)
    advice = r"\n  check the address and your network; nnsight.status\(\) shows"
    with fails(f"no nnsight server answers at {address}: .*Connection refused{advice}"):
        lens.run(pair[0])
    with fails(f"no nnsight server answers at {address}"), lens.trace(pair[0]):
        lens.read(1, "z").save()
    with fails(r"no nnsight server answers at http://no-such-host.invalid:5001"):
        lens.run(pair[0], remote="http://no-such-host.invalid:5001")


def test_something_else_answers(pair: Any, text_only: Service, sent: list) -> None:
    lens = Lens.demo(backend="nnsight")
    with fails(r"refused the request|no nnsight server answers"):
        lens.run(pair[0], remote=f"{text_only.url}/nowhere")


LOST = r"^the connection to {url} was lost \(job \w+, last status \w+\): "
REFUSED = r"^{url} refused the request: "
FAULTS = {
    "drop": LOST + r".*\n  nothing that finished is lost: run the same again, and a sweep with checkpoint=",
    "refuse": r"^{url} did not take the request, it is not available \(503\): The service is being redeployed. .*\n"
    r"  nothing that finished is lost: wait, then run the same again",
    "version": REFUSED + r"Client nnsight version [\d.]+ is below the minimum supported 99.0.0.*\n"
    r"  install the version the server asks for: pip install nnsight==",
    "bad_key": REFUSED + r"Invalid API key format: '\[key\]'.*\n"
    r"  a key is set but was not accepted: get one at https://login.ndif.us, then nnsight.login\(\) or set NDIF_API",
    "error": r"^the job failed on {url}: torch.OutOfMemoryError: CUDA out of memory. .*\n"
    r"  the server ran out of memory: send smaller batches, or read fewer rows or heads$",
    "garbled": LOST + r"what came back cannot be read: ValidationError",
    "lost_result": r"^{url} reports the job as completed, but its result is not at the address it named \(404\)\n"
    r"  run the same again; if it stays so",
}
KINDS = [("run", kind) for kind in FAULTS] + [
    (call, kind) for call in ("generate", "trace") for kind in ("drop", "error")
]


@pytest.mark.parametrize(("call", "kind"), KINDS)
def test_a_fault_of_the_service(
    served: Lens, pair: Any, service: Service, works_again: None, kind: str, call: str, monkeypatch: Any
) -> None:
    service.fault(kind)
    opened, connect = [], ServerBackend._connect
    monkeypatch.setattr(ServerBackend, "_connect", lambda self: opened.append(connect(self)) or opened[-1])
    with fails(FAULTS[kind].replace("{url}", service.url)) as caught:
        if call == "trace":
            with served.trace(pair[0]):
                served.read(1, "z").save()
        else:
            getattr(served, call)(pair[0])
    if kind == "error":
        assert caught.value.details.startswith("Traceback (most recent call last):")
    assert [connection.sock for connection in opened] == [None], "the socket is closed, whoever hung up"


def test_a_key_is_needed(served: Lens, pair: Any, service: Service, works_again: None, monkeypatch: Any) -> None:
    service.fault("needs_key")
    served.run(pair[0])  # there is one
    with monkeypatch.context() as without:
        without.setattr(nnsight.CONFIG.API, "APIKEY", None)
        with fails(r"refused the request: Missing or invalid API key(.|\n)*  no key is set: get one at https://login"):
            served.run(pair[0])


@pytest.mark.parametrize("kind", ["hang", "stall"])
def test_a_silent_service_is_left_after_the_timeout(
    served: Lens, pair: Any, service: Service, works_again: None, kind: str
) -> None:
    service.fault(kind, times=1, seconds=15)
    served._backend.timeout = 0.6
    started = time.monotonic()
    text = {
        "hang": r"^nothing was heard from {url} for 0.6 s \(job \w+, last status RUNNING\)\n"
        r"  nothing that finished is lost: run the same again, or wait longer with timeout=",
        "stall": r"^the connection to {url} was lost: sending failed: .*timed out",
    }[kind]
    with fails(text.replace("{url}", service.url)):
        served.run(pair[0])
    assert 0.5 < time.monotonic() - started < 12  # on a busy machine, too


def test_a_slow_service_is_waited_for(served: Lens, native: Lens, pair: Any, service: Service) -> None:
    service.fault("slow", seconds=0.7)
    served._backend.timeout = 5.0
    same_run(served.run(pair[0]), native.run(pair[0]))
    served._backend.timeout = 600.0


def test_a_model_that_is_not_hosted(served: Lens, pair: Any, service: Service, sent: list) -> None:
    lens = Lens.demo("plain", backend="nnsight", remote=service.url)
    with fails(
        r"refused the request: Model lmm-lens/shapes-llava-plain .* is not deployed.*\n"
        rf"  vision-language models that it runs: {REPO}$"
    ):
        lens.run(pair[0])
    lens.model.name_or_path = ""
    nameless = Lens(lens.model, lens.processor, backend="nnsight", remote=service.url)
    with fails(
        r"knows models by the name of their repository, and this one was given as an object\n  use Lens.from_pre"
    ):
        nameless.run(pair[0])


def test_a_service_without_any_vision_language_model(pair: Any, text_only: Service, sent: list) -> None:
    lens = Lens.demo(backend="nnsight", remote=text_only.url)
    with fails(r"is not deployed.*\n  it runs no vision-language model, only: lmm-lens/some-text-model$"):
        lens.run(pair[0])


def test_killed_while_running(pair: Any, fresh_service: Service, sent: list) -> None:
    lens = Lens.demo(backend="nnsight", remote=fresh_service.url)
    fresh_service.fault("hang")
    lost = rf"^the connection to {fresh_service.url} was lost \(job \w+, last status RUNNING\): .*\n  nothing that fin"
    with when_running(fresh_service.process.kill), fails(lost):  # type: ignore[union-attr]
        lens.run(pair[0])
    fresh_service.wait()
    with fails("no nnsight server answers"):
        lens.run(pair[0])


def test_an_interrupt_leaves_no_open_socket(
    served: Lens, pair: Any, service: Service, works_again: None, monkeypatch: Any
) -> None:
    opened, connect = [], websocket.create_connection

    def remembered(*args: Any, **kwargs: Any) -> Any:
        opened.append(connect(*args, **kwargs))
        return opened[-1]

    monkeypatch.setattr(websocket, "create_connection", remembered)
    service.fault("hang", times=1)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with when_running(lambda: os.kill(os.getpid(), signal.SIGINT)), pytest.raises(KeyboardInterrupt):
            served.run(pair[0])
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(opened) == 1
    assert not opened[0].connected
    assert opened[0].sock is None


def test_the_key_is_in_no_repr_and_in_no_saved_file(served: Lens, pair: Any, tmp_path: Any, works_again: None) -> None:
    from lmm_lens import activation_patching, score_heads

    backend = ServerBackend("a key of a model", served.remote, {}, 1.0)  # type: ignore[arg-type]
    assert backend.api_key == SECRET
    assert SECRET not in repr(backend) + repr(served) + repr(served.run(pair[0])) + str(served.identity)
    score_heads(served, pair[0], checkpoint=tmp_path / "scores").save(tmp_path / "saved")
    activation_patching(served, *pair, layers=[1], checkpoint=tmp_path / "grid").save(tmp_path / "saved_grid")
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) >= 4
    assert not any(SECRET.encode() in file.read_bytes() for file in files)


def test_progress_is_shown_while_queued_and_running(
    served: Lens, pair: Any, service: Service, works_again: None, capsys: Any, monkeypatch: Any
) -> None:
    with monkeypatch.context() as loud:
        loud.setattr(nnsight.CONFIG.APP, "REMOTE_LOGGING", True)
        service.fault("slow", seconds=0.5, times=1)
        served.run(pair[0])
        shown = capsys.readouterr().out
    for text in ("RECEIVED", "QUEUED", "Your job is at position 1 of the queue.", "RUNNING", "COMPLETED"):
        assert text in shown, text
    assert shown.index("QUEUED") < shown.index("RUNNING") < shown.index("COMPLETED")
    assert shown.count("QUEUED") > 1, "it is refreshed while nothing comes"
    assert SECRET not in shown
    served.run(pair[0])
    assert capsys.readouterr().out == ""


def test_nothing_of_a_failed_job_stays(served: Lens, native: Lens, pair: Any, service: Service) -> None:
    from lmm_lens import AblateHeads

    service.fault("drop", times=1)
    with pytest.raises(RemoteError), served.apply(AblateHeads([(1, 2)])):
        served.run(pair[0])
    same_run(served.run(pair[0]), native.run(pair[0]))
    assert torch.is_grad_enabled()
