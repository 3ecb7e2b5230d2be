"""Jobs: one at a time, in a thread, each leaving the process as it found it."""

import contextlib
import io
import linecache
import os
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import zstandard
from nnsight.intervention.serialization import UnknownPersistentIdError
from nnsight.schema.request import RequestModel
from nnsight.schema.response import ResponseModel, Status
from nnsight.tracing.globals import BLOCKS, SOURCES
from nnsight.tracing.tracer import _saves, dec, inc
from nnsight.tracing.util import clean_traceback

from . import faults, sandbox
from .hostile import TAMPERING


@dataclass
class Job:
    id: str
    request: RequestModel
    payload: bytes
    fault: str | None
    seconds: float  # how long the fault "slow" keeps it waiting
    entry: dict[str, Any] = field(default_factory=dict)  # its line in GET /log
    undeployable: str | None = None  # why its model is not run
    tamper: str | None = None  # what is changed in its result, see hostile.py


class UnreadableError(Exception):
    """A payload that could not be loaded. As on NDIF the client gets one sentence for it, not a traceback."""


@contextlib.contextmanager
def untouched_sources() -> Iterator[None]:
    """Forget a request's sources afterwards.

    nnsight files them under the client's own file names and never looks again: the next request from the same line
    would run this one's code.
    """
    kept = [(cache, dict(cache)) for cache in (linecache.cache, SOURCES, BLOCKS)]
    try:
        yield
    finally:
        for cache, before in kept:
            cache.clear()
            cache.update(before)


class Lines(io.TextIOBase):
    """A stdout that hands over whole lines: what a block prints goes to the client as LOG."""

    def __init__(self, take: Callable[[str], None]) -> None:
        self.take, self.rest = take, ""

    def write(self, text: str) -> int:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            self.take(line)
        return len(text)


class Jobs(threading.Thread):
    def __init__(self, model: Any, send: Callable[[Job, ResponseModel], None], close: Callable[[Job], None]) -> None:
        super().__init__(daemon=True)
        self.model, self.send, self.close = model, send, close
        self.waiting: queue.Queue[Job] = queue.Queue()
        self.unfinished = 0

    def accept(self, job: Job) -> None:
        self.unfinished += 1
        if sandbox.Unpickler.strict:
            self.status(job, Status.QUEUED, f"Your job is at position {self.unfinished} of the queue.")
        else:
            self.status(job, Status.QUEUED, f"Added to Queue at position {self.unfinished}.")
        self.waiting.put(job)

    def run(self) -> None:
        while True:
            job, started = self.waiting.get(), time.monotonic()
            try:
                self.attempt(job)
            except Exception:
                traceback.print_exc()  # a mistake in this file: the next job has its turn all the same
            job.entry["seconds"] = time.monotonic() - started
            self.unfinished -= 1

    def attempt(self, job: Job) -> None:
        if not sandbox.Unpickler.strict:
            if job.undeployable or job.fault == "cold":
                self.status(job, Status.PROVISIONING, "Model Provisioning...")
            if job.undeployable:
                self.status(job, Status.ERROR, f"Could not deploy this model. {job.undeployable}")
                return
            if job.fault == "cold":
                self.status(job, Status.DEPLOYING, "Model Deploying...")
                time.sleep(job.seconds)
            self.status(job, Status.DISPATCHED, "Your job has been sent to the model deployment.")
        if job.fault == "slow":
            time.sleep(job.seconds)
        self.status(job, Status.RUNNING, "Your job has started running.")
        if job.fault == "die":
            os._exit(17)
        elif job.fault == "drop":
            self.close(job)
        elif job.fault == "error":
            self.status(job, Status.ERROR, f"Traceback (most recent call last):\n{faults.OUT_OF_MEMORY}")
        elif job.fault != "hang":
            self.work(job)

    def status(self, job: Job, status: Status, description: str = "", **more: Any) -> None:
        if status is not Status.LOG:
            job.entry["status"] = status.value
        self.send(job, ResponseModel(id=job.id, status=status, description=description, **more))

    def work(self, job: Job) -> None:
        self.status(job, Status.LOG, f"Running {type(self.model).__name__} on the CPU.")
        with sandbox.recorded() as seen, untouched_sources(), torch.no_grad():
            try:
                result = self.result(job)
            except UnreadableError as error:
                failed = str(error)
            except BaseException as error:  # the client's code may raise anything, SystemExit too
                where = getattr(error, "__intervention_tb__", None) or clean_traceback(error.__traceback__)
                failed = "".join(traceback.format_exception(type(error), error, where))
            else:
                failed = ""
        job.entry["globals"] = sorted(seen)
        if failed:
            self.status(job, Status.ERROR, failed)
            return
        job.entry["result_bytes"] = len(result)
        self.status(job, Status.COMPLETED, "Your job has been completed.", data=result)

    def result(self, job: Job) -> bytes:
        """The saved values of a request's block, as the client loads them."""
        tracer = self.load(job)
        self.model._remoteable_set_env(job.request.env)
        lines = Lines(lambda line: self.status(job, Status.LOG, line))
        with contextlib.redirect_stdout(lines), contextlib.redirect_stderr(lines):  # warnings too, as on NDIF
            inc()
            try:
                tracer.execute(tracer.info.code)
                marked, variables = _saves(), tracer.info.frame.f_locals
                saved = {name: value for name, value in variables.items() if id(value) in marked}
            finally:
                dec()
        if job.tamper:
            TAMPERING[job.tamper](saved)
        buffer = io.BytesIO()
        torch.save(saved, buffer)
        data = buffer.getvalue()
        return zstandard.ZstdCompressor(level=3).compress(data) if job.request.compress else data

    def load(self, job: Job) -> Any:
        known = self.model._remoteable_persistent_objects()
        try:
            tracer = RequestModel.deserialize(job.payload, known, job.request.compress, sandbox.Unpickler)
        except UnknownPersistentIdError as error:
            raise UnreadableError(
                "The model architecture on this server doesn't match the one your code was traced against: "
                f"it has no module at '{error}'."
            ) from error
        except Exception as error:
            raise UnreadableError(
                f"Your request payload could not be read ({type(error).__name__}: {error}). It may be truncated or "
                "corrupted in transit, or compressed differently than the request declared."
            ) from error
        if sandbox.Unpickler.strict:
            tracer.info.frame.f_locals["__builtins__"] = sandbox.BUILTINS  # for the block itself
        return tracer
