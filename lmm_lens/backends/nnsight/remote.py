"""Send a job to an nnsight server and bring its answer back, or an error that says what to do.

nnsight's own client waits for ever, reports what went wrong in the words of its parts (sockets, HTTP, a traceback of
the server), and believes the server: it unpickles whatever comes, unpacks it to any size, fetches it from anywhere, and
writes it into any variable. Each step that reads an answer is taken over here; docs/howto/remote.md says what is
trusted.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

import httpx
import websocket
from nnsight.intervention.backends.remote import RemoteBackend
from nnsight.intervention.backends.remote import RemoteError as NNsightRemoteError
from nnsight.intervention.interleaver import OutOfOrderError
from nnsight.schema.config import CONFIG
from nnsight.schema.request import RequestModel
from nnsight.schema.response import ResponseModel, Status

from ...errors import LensError, RemoteError
from ..address import Address, checked_result_address
from .answer_archive import read_archive
from .answer_pickle import UnwantedError
from .asked_for import NotAskedForError, values_asked_for
from .connection import CONNECT_SECONDS, RedirectedError, Socket, ask
from .limits import SMALL, answer_limit, decompressed, too_large
from .refusals import Refusals
from .travel import by_source, check_payload
from .versions import check_versions

EXPECTED = ("was never reached", "warnings.warn(expected)")  # how an open-ended loop over generated tokens ends
WAKE_SECONDS = 0.2  # how often the display is refreshed while nothing comes
LOADING = (Status.PROVISIONING, Status.DEPLOYING)  # told once, when it begins: gigabytes may have to be fetched
LOADS_LONGER = 6  # times the patience for any other silence


class ServerBackend(RemoteBackend):  # type: ignore[misc]  # nnsight has no types
    """nnsight's remote backend with a deadline, checks of what goes and of what comes, and errors to act on.

    Args:
        model_key: names the model to the server.
        address: of the server, http://...; None for the one of nnsight's configuration (NDIF).
        env: what nnsight asks of the server's model for this request.
        timeout: seconds without any news after which to give up; `LOADS_LONGER` times that while a model is loaded.
    """

    def __init__(self, model_key: str, address: str | None, env: dict[str, Any], timeout: float) -> None:
        named = address or CONFIG.API.HOST
        self.address = named if isinstance(named, Address) else Address(named)
        super().__init__(model_key, host=str(self.address), env=env)
        self.refusals = Refusals(self.address, self.api_key)
        self.timeout, self.limit = timeout, answer_limit()
        self.job: str | None = None

    def __repr__(self) -> str:
        return f"ServerBackend({self.address})"

    def _serialize(self, tracer: Any) -> bytes:
        with by_source():
            blob: bytes = super()._serialize(tracer)
        check_payload(decompressed(blob, sys.maxsize) if self.compress else blob)
        return blob

    def request(self, request: RequestModel, tracer: Any) -> Any:
        """Send, wait, receive.

        Raises:
            RemoteError: the server cannot be reached, refuses, is silent for too long, hangs up, or fails; or its
                answer asks for more than values, is too large, or is no answer to this request.
            LensError: what this library's own code raised there.
        """
        blob = self._serialize(tracer)
        connection = self._connect()
        try:
            request.session_id = self._session(connection)
            check_versions(self.address)
            answer = self._post(request, blob)
            self.job = answer.id
            self._done(answer)
            connection.limit, heard = self.limit, time.monotonic()
            while True:
                message = self._receive(connection, heard)
                heard = time.monotonic()
                try:
                    response = self.parse(message)
                    if self._done(response):
                        return values_asked_for(self.download_result(response.data), tracer.node)
                except (LensError, OutOfOrderError):
                    raise
                except UnwantedError as error:
                    raise self.refusals.unwanted(str(error)) from None
                except NotAskedForError as error:
                    raise self.refusals.no_values(str(error)) from None
                except Exception as error:  # of httpx, pydantic, zstandard, torch: whatever an answer can break
                    first = (str(error).splitlines() or ["no reason given"])[0]
                    raise self._lost(f"what came back cannot be read: {type(error).__name__}: {first}") from None
        finally:
            connection.close()
            connection.shutdown()  # close() leaves the socket open where the server has hung up

    # ------------------------------------------------------------------ the way there

    def _headers(self) -> dict[str, str]:
        return {**({"ndif-api-key": self.api_key} if self.api_key else {}), **self.address.headers}

    def _connect(self) -> Any:
        try:
            connection = websocket.create_connection(
                f"{self.ws_host}/subscribe", timeout=CONNECT_SECONDS, header=self._headers(), class_=Socket
            )
        except RedirectedError as error:
            raise self.refusals.redirected(error.status, error.target) from None
        except websocket.WebSocketBadStatusException as error:
            body = (error.resp_body or b"").decode("utf-8", "replace")
            raise self.refusals.refused(error.status_code, body, error.resp_headers or {}) from None
        except (OSError, ValueError, OverflowError, MemoryError, websocket.WebSocketException) as error:
            raise self.refusals.unreachable(str(error)) from None
        connection.settimeout(WAKE_SECONDS)
        return connection

    def _session(self, connection: Any) -> str:
        """The name of the websocket, which the server says first."""
        message = self._receive(connection, time.monotonic())
        try:
            session = json.loads(message)["session_id"]
        except (ValueError, KeyError, TypeError, RecursionError):
            session = None
        if not isinstance(session, str):
            raise self._no_server(message if isinstance(message, str) else "bytes")
        return session

    def _no_server(self, said: str) -> RemoteError:
        return self.refusals.page(200, said)

    def _post(self, request: RequestModel, blob: bytes) -> ResponseModel:
        """Send the job; the status that it was received with."""
        headers = {
            "ndif-timestamp": repr(time.time()),
            "nnsight-version": version("nnsight"),
            "python-version": sys.version,
            **self._headers(),
        }
        try:
            reply = ask(
                "POST",
                f"{self.address}/request",
                self.timeout,
                data={"data": request.metadata()},
                files={"blob": ("request", blob, "application/octet-stream")},
                headers=headers,
            )
        except httpx.HTTPError as error:
            raise self._lost(f"sending failed: {error or type(error).__name__}") from None
        if reply.status != 200:
            raise self.refusals.refused(reply.status, reply.text, reply.headers)
        try:
            return ResponseModel.model_validate_json(reply.body)
        except ValueError:
            raise self._no_server(reply.text) from None

    # ------------------------------------------------------------------ the way back

    def _receive(self, connection: Any, heard: float) -> str | bytes:
        timeout = self.timeout * (LOADS_LONGER if self.job and self.status in LOADING else 1)
        connection.until = heard + timeout
        while True:
            try:
                message = connection.recv()
            except websocket.WebSocketTimeoutException:
                self.display.refresh()
                if time.monotonic() - heard > timeout:
                    raise RemoteError(
                        f"nothing was heard from {self.address} for {timeout:g} s{self._where()}\n"
                        "  nothing that finished is lost: run the same again, or wait longer with timeout=..."
                    ) from None
                continue
            except LensError:
                raise
            except (OSError, ValueError, websocket.WebSocketException) as error:
                raise self._lost(str(error)) from None
            if not message:
                raise self._lost("the server closed it")
            heard_of: str | bytes = message
            return heard_of

    def parse(self, message: str | bytes) -> ResponseModel:
        """A status from one websocket frame; nnsight's own unpickles a binary one as it comes."""
        if isinstance(message, str):
            if len(message) > SMALL:
                raise too_large(SMALL)
            return ResponseModel.model_validate_json(message)
        fields = read_archive(bytes(message), self.limit)
        if not isinstance(fields, dict):
            raise UnwantedError("a status that is none")
        return ResponseModel.model_validate(fields)

    def note(self, response: ResponseModel) -> bool:
        """As nnsight's, which prints what the server says; here without what steers a terminal."""
        clean = self.refusals.clean
        said = {"id": clean(response.id), "description": clean(response.description)}
        return bool(super().note(response.model_copy(update=said)))

    def _done(self, response: ResponseModel) -> bool:
        if response.status is not Status.LOG:
            self.status = response.status
        elif any(part in response.description for part in EXPECTED):
            return False
        try:
            return self.note(response)
        except NNsightRemoteError as error:
            raise self.refusals.failed(str(error)) from None

    def download_result(self, data: Any) -> dict[str, Any]:
        """The values: sent along, or fetched from the address that was sent instead."""
        if isinstance(data, bytes) and data:
            return self.finalize(data)
        if not isinstance(data, str) or not data:
            raise self.refusals.no_values("sent no values")
        url = checked_result_address(data, self.address)
        own = urlsplit(url).hostname == urlsplit(self.address).hostname
        shows = "result" if self.display.enabled else None
        reply = ask(
            "GET", url, self.timeout, limit=self.limit, shows=shows, headers=self.address.headers if own else {}
        )
        if 300 <= reply.status < 400:
            raise self.refusals.redirected(reply.status, reply.headers.get("location", "nowhere"))
        if reply.status != 200:
            raise self.refusals.no_values(f"its result is not at the address it named ({reply.status})")
        return self.finalize(reply.body)

    def finalize(self, content: bytes) -> dict[str, Any]:
        """The values of a result; nnsight's own unpickles them as they come."""
        values = read_archive(decompressed(content, self.limit) if self.compress else content, self.limit)
        if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
            raise self.refusals.no_values("sent something else than named values")
        return values

    def _lost(self, why: str) -> RemoteError:
        return self.refusals.lost(why, self._where())

    def _where(self) -> str:
        return f" (job {self.job}, last status {self.status.value})" if self.job and self.status else ""
