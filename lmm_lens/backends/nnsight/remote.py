"""Send a job to an nnsight server and bring its answer back, or an error that says what to do.

nnsight's own client waits for ever, and reports what went wrong in the words of its parts (sockets, HTTP, a traceback
of the server). Here every way a job can fail has one text, and the key of nnsight's configuration is in none.
"""

from __future__ import annotations

import json
import time
from typing import Any

from nnsight.intervention.backends.remote import RemoteBackend
from nnsight.intervention.backends.remote import RemoteError as NNsightRemoteError
from nnsight.intervention.interleaver import OutOfOrderError
from nnsight.schema.config import CONFIG
from nnsight.schema.request import RequestModel
from nnsight.schema.response import ResponseModel, Status

from ... import errors
from ...errors import LensError, RemoteError
from .travel import by_source, check_payload

CONNECT_SECONDS = 10.0
EXPECTED = ("was never reached", "warnings.warn(expected)")  # how an open-ended loop over generated tokens ends
WAKE_SECONDS = 0.2  # how often the display is refreshed while nothing comes


class ServerBackend(RemoteBackend):  # type: ignore[misc]  # nnsight has no types
    """nnsight's remote backend with a deadline, a check of the payload, and errors to act on.

    Args:
        model_key: names the model to the server.
        address: of the server, http://...; None for the one of nnsight's configuration (NDIF).
        env: what nnsight asks of the server's model for this request.
        timeout: seconds without any news after which to give up.
    """

    def __init__(self, model_key: str, address: str | None, env: dict[str, Any], timeout: float) -> None:
        super().__init__(model_key, host=address, env=env)
        self.timeout = timeout
        self.job: str | None = None

    def __repr__(self) -> str:
        return f"ServerBackend({self.host})"

    def _serialize(self, tracer: Any) -> bytes:
        with by_source():
            blob: bytes = super()._serialize(tracer)
        check_payload(_decompressed(blob) if self.compress else blob)
        return blob

    def request(self, request: RequestModel, tracer: Any) -> Any:
        """Send, wait, receive.

        Raises:
            RemoteError: the server cannot be reached, refuses, is silent for too long, hangs up, or fails.
            LensError: what this library's own code raised there.
        """
        blob = self._serialize(tracer)
        connection = self._connect()
        try:
            request.session_id = json.loads(self._receive(connection, time.monotonic()))["session_id"]
            answer = self._posted(request, blob)
            self.job = answer.id
            self.note(answer)
            heard = time.monotonic()
            while True:
                message = self._receive(connection, heard)
                heard = time.monotonic()
                try:
                    response = self.parse(message)
                    if self._done(response):
                        return self.download_result(response.data)
                except (LensError, OutOfOrderError):
                    raise
                except Exception as error:  # of httpx, pydantic, zstandard, torch: whatever an answer can break
                    first = (str(error).splitlines() or ["no reason given"])[0]
                    raise self._lost(f"what came back cannot be read: {type(error).__name__}: {first}") from None
        finally:
            connection.close()
            connection.shutdown()  # close() leaves the socket open where the server has hung up

    # ------------------------------------------------------------------ the socket

    def _posted(self, request: RequestModel, blob: bytes) -> ResponseModel:
        """Send the job; nnsight's own waits ten minutes for the answer, whatever the timeout."""
        import httpx
        from nnsight.intervention.backends import remote

        before, remote._READ_TIMEOUT = remote._READ_TIMEOUT, self.timeout
        try:
            return self._post(request, blob)
        except NNsightRemoteError as error:
            if isinstance(error.__cause__, httpx.TransportError):
                raise self._lost(f"sending failed: {error.__cause__ or type(error.__cause__).__name__}") from None
            raise self._refused(str(error)) from None
        finally:
            remote._READ_TIMEOUT = before

    def _connect(self) -> Any:
        import websocket

        header = {"ndif-api-key": self.api_key} if self.api_key else None
        try:
            connection = websocket.create_connection(
                f"{self.ws_host}/subscribe", timeout=CONNECT_SECONDS, header=header
            )
        except websocket.WebSocketBadStatusException as error:
            raise self._refused(str(error)) from None
        except (OSError, websocket.WebSocketException) as error:
            raise RemoteError(
                f"no nnsight server answers at {self.host}: {self._clean(str(error))}\n"
                "  check the address and your network; nnsight.status() shows whether NDIF is up"
            ) from None
        connection.settimeout(WAKE_SECONDS)
        return connection

    def _receive(self, connection: Any, heard: float) -> str | bytes:
        import websocket

        while True:
            try:
                message = connection.recv()
            except websocket.WebSocketTimeoutException:
                self.display.refresh()
                if time.monotonic() - heard > self.timeout:
                    raise RemoteError(
                        f"nothing was heard from {self.host} for {self.timeout:g} s{self._where()}\n"
                        "  nothing that finished is lost: run the same again, or wait longer with timeout=..."
                    ) from None
                continue
            except (OSError, websocket.WebSocketException) as error:
                raise self._lost(str(error)) from None
            if not message:
                raise self._lost("the server closed it")
            heard_of: str | bytes = message
            return heard_of

    def _lost(self, why: str) -> RemoteError:
        return RemoteError(
            f"the connection to {self.host} was lost{self._where()}: {self._clean(why)}\n"
            "  nothing that finished is lost: run the same again, and a sweep with checkpoint=... goes on where it was"
        )

    def _where(self) -> str:
        return f" (job {self.job}, last status {self.status.value})" if self.job and self.status else ""

    # ------------------------------------------------------------------ what the server says

    def _done(self, response: ResponseModel) -> bool:
        if response.status is not Status.LOG:
            self.status = response.status
        elif any(part in response.description for part in EXPECTED):
            return False
        try:
            return bool(self.note(response))
        except NNsightRemoteError as error:
            raise self._failed(self._clean(str(error))) from None

    def _failed(self, text: str) -> Exception:
        """The error for a job that failed on the server, from its traceback."""
        lines = [line for line in text.strip().splitlines() if line.strip()] or ["no reason was given"]
        start = max((i for i, line in enumerate(lines) if _raised(line)), default=len(lines) - 1)
        name, _, message = lines[start].partition(": ")
        message = "\n".join([message, *lines[start + 1 :]])
        ours = getattr(errors, name.rpartition(".")[2], None)
        if isinstance(ours, type) and issubclass(ours, LensError):
            return ours(message)
        if name.endswith("OutOfOrderError"):
            raised: Exception = OutOfOrderError(message)
            return raised
        if name == "FloatingPointError":
            return errors.ModelError(message)
        advice = "the server's own words are in the error's `details`"
        if "out of memory" in text.lower() or "OutOfMemory" in text:
            advice = "the server ran out of memory: send smaller batches, or read fewer rows or heads"
        elif "ModuleNotFoundError" in text or "ImportError" in text or "UnknownPersistentId" in text:
            advice = "the server could not rebuild what was sent: compare versions with nnsight.compare()"
        elif "attn" in text and "implementation" in text:
            advice = "the server could not switch its model to eager attention"
        failure = RemoteError(f"the job failed on {self.host}: {lines[start].strip()}\n  {advice}")
        failure.details = text
        return failure

    def _refused(self, text: str) -> RemoteError:
        """The error for a request that the server did not take."""
        text = self._clean(text.removeprefix("Failed to send request: "))
        low = text.lower()
        if "version" in low:
            advice = "install the version the server asks for: pip install nnsight==...; nnsight.compare() shows both"
        elif "key" in low or "401" in low or "403" in low:
            have = "a key is set but was not accepted" if self.api_key else "no key is set"
            advice = f"{have}: get one at https://login.ndif.us, then nnsight.login() or set NDIF_API_KEY"
        else:
            advice = self._hosted()
        return RemoteError(f"{self.host} refused the request: {text}\n  {advice}")

    def _hosted(self) -> str:
        """Which models the server runs, as advice."""
        import httpx

        try:
            found = httpx.get(f"{self.host}/status", timeout=CONNECT_SECONDS).json()["deployments"].values()
        except (httpx.HTTPError, ValueError, KeyError, AttributeError, TypeError):
            return "its list of models cannot be read either; see nnsight.status()"
        tasks = {str(model.get("repo_id")): str(model.get("task") or model.get("model_key")) for model in found}
        seeing = sorted(name for name, task in tasks.items() if "image-text" in task)
        if seeing:
            return f"vision-language models that it runs: {', '.join(seeing)}"
        return f"it runs no vision-language model, only: {', '.join(sorted(tasks)) or 'nothing'}"

    def _clean(self, text: str) -> str:
        """Without the key, which some servers quote in their answers."""
        for secret in {self.api_key, CONFIG.API.APIKEY}:
            if secret:
                text = text.replace(secret, "[key]")
        return text


def _raised(line: str) -> bool:
    """Whether a line of a traceback names the exception."""
    name = line.partition(":")[0]
    return bool(name) and name.replace(".", "").replace("_", "").isalnum() and not line.startswith((" ", "Traceback"))


def _decompressed(blob: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdDecompressor().decompress(blob)
