"""The HTTP side: /subscribe and /request of nnsight 0.8.1, what nnsight.ndif asks, and /log and /fault for tests."""

import argparse
import asyncio
import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any

import torch
import uvicorn
from anyio.abc import SocketAttribute  # noqa: F401  (cannot be imported once nnsight has put .save on every object)
from fastapi import FastAPI, File, Form, Header, HTTPException, Request, Response, UploadFile, WebSocket
from nnsight import TransformersModel
from nnsight.ndif import get_local_env
from nnsight.schema.request import RequestModel
from nnsight.schema.response import ResponseModel, Status
from transformers import AutoProcessor

from . import hostile, sandbox
from .faults import Faults
from .jobs import Job, Jobs

CLASS = "nnsight.modeling.transformers.TransformersModel"
LARGEST = 1 << 20  # bytes of a request that ndif 0.1.2 takes: it cannot spool larger ones to a disk
COLD = {"lmm-lens/cold-model": {"deployment_level": "COLD", "repo_id": "lmm-lens/cold-model"}}
TEXT_MODEL = {"repo_id": "lmm-lens/some-text-model", "task": "text-generation"}


class Service:
    """What is served, to whom, and what happened."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.served = None if options.text_only else {"repo_id": options.repo, "task": options.task}
        self.strict = options.strict
        sandbox.Unpickler.strict = options.strict
        self.inline_limit = options.inline_limit or (1 << 20 if options.strict else 8 << 20)
        self.faults, self.log = Faults(), list[dict[str, Any]]()
        self.attack: dict[str, Any] = {}  # what is done to clients; nothing while it is empty
        self.sockets: dict[str, WebSocket] = {}
        self.stored: dict[str, ResponseModel] = {}
        self.results: dict[str, bytes] = {}
        self.url = ""
        self.loop: asyncio.AbstractEventLoop
        self.jobs = Jobs(self.load(options) if self.served else None, self.send, self.close)

    @staticmethod
    def load(options: argparse.Namespace) -> TransformersModel:
        processor = AutoProcessor.from_pretrained(options.model)
        model = TransformersModel(options.model, task=options.task, processor=processor, dispatch=True)
        model._module.requires_grad_(False)
        if not options.trusted:
            sandbox.without_a_model(options.strict)
            sandbox.copies_are_written_back()
        return model

    def check(self, model_key: str) -> None:
        """Refuse a request for another model, task or wrapper class, naming what differs."""
        wrapper, _, rest = model_key.partition(":")
        try:
            asked = json.loads(rest)
        except ValueError:
            raise HTTPException(400, f"Malformed model key {model_key!r}.") from None
        served = {"class": CLASS, "revision": None, **(self.served or {})}
        asked = {
            "class": wrapper,
            **asked,
            "revision": None if asked.get("revision") == "main" else asked.get("revision"),
        }
        if asked != served:
            differ = [name for name in asked if asked[name] != served.get(name)]
            raise HTTPException(
                404,
                f"Model {asked['repo_id']} (task {asked.get('task')}, class {wrapper}) is not deployed: "
                f"no deployment with this {', '.join(differ)}.",
            )

    def send(self, job: Job, response: ResponseModel) -> None:
        """From the job's thread: over the websocket, and kept for those who poll. Large results are left for a GET."""
        listener = self.sockets.get(job.request.session_id)
        kept = response
        if response.status is Status.COMPLETED:
            if job.fault != "lost_result":
                self.results[job.id] = response.data
            kept = response.model_copy(update={"data": f"{self.url}/result/{job.id}"})
        if response.status is not Status.LOG:
            self.stored[job.id] = kept
        if listener is None:
            return
        if response.status is Status.COMPLETED and job.fault == "garbled":
            message = listener.send_text('{"id": "half an ans')
        elif response.status is Status.COMPLETED and len(response.data) <= self.inline_limit and job.fault is None:
            message = listener.send_bytes(response.pickle())
        else:
            message = listener.send_text(kept.model_dump_json())
        with contextlib.suppress(Exception):  # a client may have left
            asyncio.run_coroutine_threadsafe(message, self.loop).result()

    def close(self, job: Job) -> None:
        if listener := self.sockets.pop(job.request.session_id, None):
            asyncio.run_coroutine_threadsafe(listener.close(1011), self.loop).result()

    def deployments(self) -> dict[str, Any]:
        listed = {}
        for number, model in enumerate([TEXT_MODEL, *([self.served] if self.served else [])]):
            key = f"{CLASS}:{json.dumps({'repo_id': model['repo_id'], 'revision': None, 'task': model['task']})}"
            described = {
                **model,
                "model_key": key,
                "revision": "main",
                "deployment_level": "HOT",
                "trust_remote_code": False,
            }
            listed[f"r{number}:ModelActor:{key}"] = {
                "application_state": "RUNNING",
                **(described if self.strict or number == 0 else {}),  # ndif 0.1.2 fails to describe models by folder
            }
        return {"deployments": listed if self.strict else {**listed, **COLD}}


def build(service: Service) -> FastAPI:
    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.loop = asyncio.get_running_loop()
        service.jobs.start()
        yield

    app = FastAPI(lifespan=lifespan)

    @app.websocket("/subscribe")
    async def subscribe(listener: WebSocket) -> None:
        if service.attack.get("where") == "socket" and (said := hostile.answer(service.attack)):
            await listener.send_denial_response(said)
            return
        await listener.accept()
        if service.attack.get("where") == "hello":
            await listener.send_text(service.attack["text"])
        session = uuid.uuid4().hex
        service.sockets[session] = listener
        with contextlib.suppress(Exception):  # until it is closed, from either side
            await listener.send_text(json.dumps({"session_id": session}))
            while True:
                await listener.receive_text()
        service.sockets.pop(session, None)

    @app.post("/request")
    async def request(incoming: Request, data: Annotated[str, Form()], blob: Annotated[UploadFile, File()]) -> Any:
        if service.attack.get("where") == "request" and (said := hostile.answer(service.attack)):
            return said
        headers, payload = incoming.headers, await blob.read()
        if not service.strict and len(payload) > LARGEST:
            service.log.append({"payload_bytes": len(payload), "status": "REFUSED", "http": 400})
            raise HTTPException(400, "There was an error parsing the body")
        key = headers.get("ndif-api-key")
        entry = {"payload_bytes": len(payload), "headers": sorted(headers.keys()), "api_key": bool(key), "globals": []}
        service.log.append(entry)
        fault = service.faults.strike()
        if fault == "stall":
            await asyncio.sleep(service.faults.seconds)
        try:
            envelope = RequestModel.model_validate_json(data)
        except ValueError as error:
            raise HTTPException(422, str(error)) from None
        entry.update(model_key=envelope.model_key, env=envelope.env)
        try:
            service.faults.gate(fault, key, headers.get("nnsight-version"))
            undeployable = None
            try:
                service.check(envelope.model_key)
            except HTTPException as refused:
                if service.strict:
                    raise
                undeployable = refused.detail
        except HTTPException as refused:
            entry.update(status="REFUSED", http=refused.status_code)
            raise
        job = Job(uuid.uuid4().hex, envelope, payload, fault, service.faults.seconds, entry)
        job.undeployable = undeployable
        entry.update(id=job.id, status=Status.RECEIVED.value)
        received = "Your job has been received and is waiting to be queued."
        service.stored[job.id] = answer = ResponseModel(id=job.id, status=Status.RECEIVED, description=received)
        if service.attack.get("kind") in (None, "tamper"):
            job.tamper = service.attack.get("name")
            await asyncio.to_thread(service.jobs.accept, job)
        else:
            listener = service.sockets[envelope.session_id]
            listener.struck = asyncio.create_task(hostile.strike(service.attack, listener, job.id, service.url))
        return answer

    @app.get("/response/{job}")
    async def response(job: str) -> ResponseModel:
        if job not in service.stored:
            raise HTTPException(404, f"no job {job}")
        return service.stored[job]

    @app.get("/result/{job}")
    async def result(job: str) -> Response:
        if job not in service.results:
            raise HTTPException(404, f"no result of job {job}")
        return Response(service.results[job], media_type="application/octet-stream")

    @app.get("/status")
    async def status() -> dict[str, Any]:
        return service.deployments()

    @app.get("/env")
    def env() -> dict[str, Any]:
        found = get_local_env()
        packages = {name: v for name, v in found["packages"].items() if "lmm" not in name}
        old = {"nnsight": "0.8.0"} if service.faults.kind == "old" else {}
        return {**found, "packages": packages | old}

    @app.get("/whoami")
    async def whoami(ndif_api_key: Annotated[str | None, Header()] = None) -> dict[str, Any]:
        return {"email": "someone@example.org" if ndif_api_key else None, "tags": []}

    @app.get("/hostile")
    async def fetched(incoming: Request) -> Response:
        service.log.append({"headers": sorted(incoming.headers.keys()), "fetched": True})
        return hostile.fetched(service.attack)

    @app.get("/log")
    async def log() -> list[dict[str, Any]]:
        return service.log

    @app.post("/attack")
    async def attack(wanted: dict[str, Any]) -> None:
        service.attack = wanted

    @app.post("/fault")
    async def fault(wanted: dict[str, Any]) -> None:
        service.faults.switch(wanted)

    return app


def follow(parent: int) -> None:
    """End when the tests' process does, however it ends."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def serve(options: argparse.Namespace) -> None:
    """Load the model, say on stdout where the service listens, and serve until killed."""
    torch.set_num_threads(1)
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a restart takes the same port
    listening.bind(("127.0.0.1", options.port))
    listening.listen()
    if options.parent:
        threading.Thread(target=follow, args=(options.parent,), daemon=True).start()
    service = Service(options)
    port = listening.getsockname()[1]
    service.url = f"http://127.0.0.1:{port}"
    print(json.dumps({"url": service.url, "port": port, "pid": os.getpid()}), flush=True)
    sys.stdout = sys.stderr  # from here on only the ready line is on stdout
    uvicorn.Server(uvicorn.Config(build(service), log_level="warning")).run(sockets=[listening])
