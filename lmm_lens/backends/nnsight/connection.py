"""HTTP and a websocket to a server that may be lying: nothing endless is read, and no redirect is followed."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import httpx
import websocket

from .limits import SMALL, too_large

CONNECT_SECONDS = 10.0
LEAST = 2**16  # bytes that must come in the time that silence is waited for; a drip would never end


class RedirectedError(websocket.WebSocketException):
    """A server sends on to another address, where the key was not sent.

    Attributes:
        status: 301, 302, 303, 307 or 308.
        target: the address.
    """

    def __init__(self, status: int, target: str) -> None:
        super().__init__(f"redirect ({status}) to {target}")
        self.status, self.target = status, target


class Socket(websocket.WebSocket):
    """websocket-client's own, which would send the key along wherever it is redirected, and take endless messages.

    Attributes:
        limit: bytes of a message, what it is wrapped in included.
        until: `time.monotonic()` after which a message is no longer waited for: pings alone are no news.
    """

    limit: int = SMALL
    until: float = float("inf")
    taken: int = 0

    def connect(self, url: str, **options: Any) -> None:
        """As websocket-client's, but the answer has to come in time, byte by byte, and is no redirect.

        Raises:
            RedirectedError: it is one.
        """
        hang_up = threading.Timer(CONNECT_SECONDS, self._hang_up)
        hang_up.daemon = True
        hang_up.start()
        try:
            super().connect(url, **{**options, "redirect_limit": 0})  # type: ignore[no-untyped-call]
        finally:
            hang_up.cancel()
            answer = self.handshake_response
            if answer is not None and answer.status != 101:  # some versions go on as if it were connected
                self.shutdown()  # type: ignore[no-untyped-call]
                raise RedirectedError(answer.status, str(answer.headers.get("location", "nowhere"))) from None

    def recv(self) -> str | bytes:
        """The next message."""
        message: str | bytes = super().recv()
        self.taken = 0
        return message

    def _recv(self, size: int) -> bytes:
        """All that comes passes through here: websocket-client has no bound of its own."""
        if time.monotonic() > self.until:
            raise websocket.WebSocketTimeoutException("no message in time")
        data: bytes = super()._recv(size)  # type: ignore[no-untyped-call]
        self.taken += len(data)
        if self.taken > self.limit + 2**16:  # control frames come between
            raise too_large(self.limit)
        return data

    def _hang_up(self) -> None:
        if self.sock is not None:
            with contextlib.suppress(OSError):  # it is closed already
                self.sock.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True)
class Reply:
    """What came back over HTTP.

    Attributes:
        status: 200, 404 and so on.
        headers: by name, in small letters.
        body: its bytes, as sent.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode("utf-8", "replace")


@cache
def _trusted(*named: str | None) -> ssl.SSLContext:
    return httpx.create_ssl_context()


def trusted() -> ssl.SSLContext:
    """The certificates that httpx trusts, read once: a client reads them for itself, which takes longer than a request.

    Another file or folder of them named in the environment is read anew.
    """
    return _trusted(*map(os.environ.get, ("SSL_CERT_FILE", "SSL_CERT_DIR")))


def ask(
    method: str, url: str, timeout: float, *, limit: int = SMALL, shows: str | None = None, **content: Any
) -> Reply:
    """One HTTP request, answered in a bounded number of bytes and without following redirects.

    Args:
        method: GET or POST.
        url: the address.
        timeout: seconds of silence after which to give up.
        limit: bytes of the answer.
        shows: what a progress bar is called; None for none.
        content: headers and what httpx sends.

    Raises:
        RemoteError: the answer is larger than the limit.
        httpx.HTTPError: nothing answers, or it hangs up, or it takes far too long over it.
    """
    from tqdm import tqdm  # type: ignore[import-untyped]

    headers = {**content.pop("headers", {}), "Accept-Encoding": "identity"}  # what httpx unpacks has no bound
    patience = httpx.Timeout(CONNECT_SECONDS, read=timeout)
    with (
        httpx.Client(timeout=patience, follow_redirects=False, verify=trusted()) as client,
        client.stream(method, url, headers=headers, **content) as response,
    ):
        said = response.headers.get("content-length", "")
        if said.isdecimal() and int(said) > limit:
            raise too_large(limit)
        body, started, before = bytearray(), time.monotonic(), 0
        with tqdm(total=int(said or 0) or None, unit="B", unit_scale=True, desc=shows, disable=shows is None) as bar:
            for piece in response.iter_raw():
                body += piece
                bar.update(len(piece))
                if len(body) > limit:
                    raise too_large(limit)
                if time.monotonic() - started > timeout:
                    if len(body) - before < LEAST:
                        raise httpx.ReadTimeout(f"only {len(body) - before} bytes came in {timeout:g} s")
                    started, before = time.monotonic(), len(body)
    return Reply(response.status_code, dict(response.headers), bytes(body))
