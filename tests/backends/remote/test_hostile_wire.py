"""What a server says over HTTP and its websocket: nothing endless is read, nobody is sent on, no secret goes astray."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.sync.server import serve

from lmm_lens import Lens
from lmm_lens.backends.nnsight import connection
from lmm_lens.errors import LensError
from tests.backends.remote.clients import fails, run_once_packed
from tests.backends.remote.service import Service

pytestmark = pytest.mark.attack
COUNTED = "bombs, redirects and broken frames that got a sentence"

LIMIT = 10_000_000
TOO_LARGE = (
    rf"^the server's answer is larger than {LIMIT:,} bytes, and was not read any further\n"
    r"  read fewer rows, layers or heads, or raise the limit with the environment variable LMM_LENS_ANSWER_BYTES$"
)


@pytest.fixture
def low_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMM_LENS_ANSWER_BYTES", str(LIMIT))


@pytest.fixture
def elsewhere() -> Iterator[tuple[int, list[bytes]]]:
    """Another server on this machine: its port, and what anybody said to it."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def hear() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    with connection:
                        connection.settimeout(1)
                        heard.append(connection.recv(65536))

        thread = threading.Thread(target=hear, daemon=True)
        thread.start()
        yield listening.getsockname()[1], heard
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(5)


# ---------------------------------------------------------------------- too much


def test_a_bomb_is_not_unpacked(served: Lens, pair: Any, service: Service, low_limit: None) -> None:
    service.attack("bomb", "inline", megabytes=512)
    started = time.monotonic()
    with fails(TOO_LARGE):
        run_once_packed(served, pair)
    service.attack("bomb", "fetched", megabytes=512)
    with fails(TOO_LARGE):
        run_once_packed(served, pair)
    assert time.monotonic() - started < 10


def test_a_few_bytes_are_not_shown_as_many(served: Lens, pair: Any, service: Service) -> None:
    service.attack("stretched")
    with fails(r"^the server's answer is larger than 2,147,483,648 bytes"):
        run_once_packed(served, pair)


def test_an_endless_message(served: Lens, pair: Any, service: Service, low_limit: None) -> None:
    service.attack("long", "long", megabytes=40)
    with fails(TOO_LARGE):
        run_once_packed(served, pair)


@pytest.mark.parametrize("name", ["endless", "too_long"])
def test_an_endless_result(served: Lens, pair: Any, service: Service, low_limit: None, name: str) -> None:
    service.attack("fetched", "fetched", name=name)
    with fails(TOO_LARGE):
        run_once_packed(served, pair)


def test_a_result_that_drips(served: Lens, pair: Any, service: Service) -> None:
    service.attack("fetched", "fetched", name="drip")
    served._backend.timeout = 0.5
    try:
        with fails(r"was lost \(job .*what came back cannot be read: ReadTimeout: only \d+ bytes came in 0.5 s"):
            run_once_packed(served, pair)
    finally:
        served._backend.timeout = 600.0


@pytest.mark.parametrize(("name", "what"), [("too_short", "RemoteProtocolError"), ("gzip", "ZstdError")])
def test_a_result_that_is_another_than_it_says(served: Lens, pair: Any, service: Service, name: str, what: str) -> None:
    service.attack("fetched", "fetched", name=name)
    with fails(rf"was lost \(job .*what came back cannot be read: {what}"):
        run_once_packed(served, pair)


@pytest.mark.parametrize("where", ["request", "socket"])
def test_an_endless_error_page(
    served: Lens, pair: Any, service: Service, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "CONNECT_SECONDS", 0.5)
    service.attack("flood", where)
    with fails("what the server says is larger than 4,194,304 bytes|no nnsight server answers|refused the request"):
        run_once_packed(served, pair)


def test_a_handshake_that_never_ends(pair: Any, sent: list, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CONNECT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip() -> None:
            client, _ = listening.accept()
            with client, contextlib.suppress(OSError):
                client.sendall(b"HTTP/1.1 101 Switching Protocols\r\nx: ")
                while True:
                    client.sendall(b"y")
                    time.sleep(0.01)

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        started = time.monotonic()
        with fails("no nnsight server answers"):
            Lens.demo(backend="nnsight", remote=f"http://127.0.0.1:{listening.getsockname()[1]}").run(pair[0])
        assert time.monotonic() - started < 5
        thread.join(5)


def test_pings_alone_are_no_news(pair: Any, sent: list) -> None:
    stop = threading.Event()

    def pinging(connection: Any) -> None:
        with contextlib.suppress(Exception):
            while not stop.wait(0.01):
                connection.ping()

    with serve(pinging, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        port = server.socket.getsockname()[1]
        lens = Lens.demo(backend="nnsight", remote=f"http://127.0.0.1:{port}", timeout=0.6)
        with fails("nothing was heard from .* for 0.6 s"):
            lens.run(pair[0])
        stop.set()
        server.shutdown()
        thread.join(5)


@pytest.mark.parametrize("given", ["nothing", "-1", "nan"])
def test_a_limit_that_is_none(served: Lens, pair: Any, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMM_LENS_ANSWER_BYTES", given)
    with pytest.raises(LensError, match=rf"LMM_LENS_ANSWER_BYTES is the number of bytes .* it is '{given}'"):
        run_once_packed(served, pair)


# ---------------------------------------------------------------------- somewhere else


@pytest.mark.parametrize("where", ["request", "socket"])
@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(
    served: Lens, pair: Any, service: Service, elsewhere: Any, where: str, status: int
) -> None:
    port, heard = elsewhere
    scheme = "http" if where == "request" else "ws"
    target = f"{scheme}://someone:password@localhost:{port}/there?signature=abc"
    service.attack("redirect", where, target=target, status=status)
    with fails(
        rf"^{service.url} sends on to another address \({status}: {scheme}://localhost:{port}/there\), which was not "
        r"followed: the key goes to the server that you name\n  if you trust that one, name it: remote=\.\.\.$"
    ):
        run_once_packed(served, pair)
    assert heard == []


def test_a_result_that_is_sent_on(served: Lens, pair: Any, service: Service, elsewhere: Any) -> None:
    port, heard = elsewhere
    service.attack("fetched", "fetched", name="redirect", target=f"http://localhost:{port}/there")
    with fails("sends on to another address"):
        run_once_packed(served, pair)
    assert heard == []


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://localhost:{port}/x", "http://localhost:{port}"),
        ("https://localhost:{port}/x", "https://localhost:{port}"),
        ("http://169.254.169.254/latest/meta-data", "http://169.254.169.254"),
        ("https://example.org/x", "https://example.org"),
        ("file:///etc/passwd", "something that is no plain http address"),
        ("ftp://127.0.0.1/x", "something that is no plain http address"),
        ("//127.0.0.1/x", "something that is no plain http address"),
        ("http://127.0.0.1@localhost:{port}/x", "something that is no plain http address"),
        ("http://[::1/x", "an address that cannot be read"),
        ("http://127.0.0.1:{port}\r\nx: y/", "an address that cannot be read"),
    ],
)
def test_a_result_on_another_host(
    served: Lens, pair: Any, service: Service, elsewhere: Any, url: str, shown: str
) -> None:
    port, heard = elsewhere
    service.attack("fetched", "fetched", url=url.format(port=port))
    where = shown.format(port=port).replace(".", r"\.")
    with fails(rf"^{service.url} says that its answer is at {where}, where it was not fetched\n  answers come"):
        run_once_packed(served, pair)
    assert heard == []


def test_a_result_is_fetched_without_the_key(served: Lens, pair: Any, service: Service, elsewhere: Any) -> None:
    service.attack("no_dict", "fetched")
    with fails("reports the job as completed, but sent something else than named values"):
        run_once_packed(served, pair)
    assert service.log()[-1]["fetched"]
    assert "ndif-api-key" not in service.log()[-1]["headers"]
