"""What a server can do to its client: POST /attack switches one on, and every request is then answered with it."""

import asyncio
import copy
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import torch
import zstandard
from fastapi import Response, WebSocket
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, StreamingResponse
from nnsight.schema.response import ResponseModel, Status
from programs import LIES, archive, named, programs, tensor

PAGE = "<!doctype html><html><head><title>Sign in &amp; continue</title></head><body>...</body></html>"
ZEROS = bytes(2**20)


def squeezed(content: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(content)


def bomb(n_megabytes: int) -> bytes:
    """Zeros, in few bytes."""
    packer = zstandard.ZstdCompressor().compressobj()
    return b"".join([*(packer.compress(ZEROS) for _ in range(n_megabytes)), packer.flush()])


def result(attack: dict[str, Any]) -> bytes:
    """A result that is no result, compressed as asked for."""
    kind = attack["kind"]
    if kind == "program":
        return squeezed(archive({"data.pkl": named(dict(programs(attack["file"]))[attack["name"]])}))
    if kind == "lie":
        return squeezed(archive({"data/0": bytes(8), **LIES[attack["name"]][0]()}))
    if kind == "bomb":
        return bomb(attack["megabytes"])
    if kind == "zip_bomb":
        return squeezed(archive({"data.pkl": named(tensor()), "data/0": 64 * ZEROS}, compressed=True))
    if kind == "stretched":  # eight bytes, shown as 2^40 of them
        wide = b"\x8a\x06" + (2**40).to_bytes(6, "little") + b"\x85"
        return squeezed(archive({"data.pkl": named(tensor(size=wide, stride=b"K\0\x85")), "data/0": bytes(8)}))
    if kind == "old_torch":  # its legacy form: pickles one after the other
        return squeezed(dict(programs(attack["file"]))["posix.system"].join([b"\x80\x04", b"."]))
    if kind == "no_dict":
        return squeezed(archive({"data.pkl": b"\x80\x04]."}))
    raise ValueError(kind)


def frame(attack: dict[str, Any], job: str, status: Status) -> bytes:
    """A binary status whose fields hold the program, or are it."""
    body = dict(programs(attack["file"]))[attack["name"]]
    fields = [
        *(b"X\x02\0\0\0idX\x01\0\0\0j", b"X\x06\0\0\0statusX"),
        *(len(status.value).to_bytes(4, "little"), status.value.encode(), b"X\x0b\0\0\0description"),
    ]
    return archive({"data.pkl": b"".join([b"\x80\x04}(", *fields, body, b"u."])})


async def strike(attack: dict[str, Any], listener: WebSocket, job: str, url: str) -> None:
    """After a request was received: what goes over the websocket."""

    async def status(status: Status, description: str = "", data: Any = None) -> None:
        said = ResponseModel(id=job, status=status, description=description, data=data)
        await listener.send_text(said.model_dump_json())

    where = attack.get("where", "inline")
    if where == "first":
        await listener.send_bytes(frame(attack, job, Status.QUEUED))
    elif where == "error":
        await status(Status.RUNNING)
        await listener.send_bytes(frame(attack, job, Status.ERROR))
    elif where == "status":
        await status(Status.QUEUED)
        await listener.send_bytes(frame(attack, job, Status.RUNNING))
    elif where == "bare":  # a pickle, in no archive
        await listener.send_bytes(b"\x80\x04" + dict(programs(attack["file"]))[attack["name"]] + b".")
    elif where == "inline":
        done = ResponseModel(id=job, status=Status.COMPLETED, data=result(attack))
        await listener.send_bytes(done.pickle())
    elif where == "fetched":
        await status(Status.COMPLETED, data=attack.get("url") or f"{url}/hostile")
    elif where == "empty":
        await status(Status.COMPLETED, data=attack.get("data"))
    elif where == "long":
        await listener.send_bytes(ZEROS * attack["megabytes"])
    elif where == "escapes":
        await status(Status.LOG, "\x1b]0;owned\x07\x1b[2J")
        await status(Status.ERROR, f"RuntimeError: \x1b[31mred\x1b[0m {attack['key']}")


async def endless(sleep: float = 0.0) -> AsyncIterator[bytes]:
    while True:
        yield ZEROS if not sleep else b"0"
        await asyncio.sleep(sleep)


async def few() -> AsyncIterator[bytes]:
    yield b"0123456789"


def fetched(attack: dict[str, Any]) -> Response:
    """What the address of a result answers."""
    name = attack.get("name")
    if attack["kind"] == "fetched":
        if name == "endless":
            return StreamingResponse(endless())
        if name == "drip":
            return StreamingResponse(endless(0.05))
        if name == "too_long":
            return StreamingResponse(few(), headers={"content-length": str(10**15)})
        if name == "too_short":
            return StreamingResponse(few(), headers={"content-length": "1000"})
        if name == "gzip":
            packer = zlib.compressobj(wbits=31)
            return Response(packer.compress(64 * ZEROS) + packer.flush(), headers={"content-encoding": "gzip"})
        if name == "redirect":
            return RedirectResponse(attack["target"])
        if name == "page":
            return HTMLResponse(PAGE)
    return Response(result(attack))


def answer(attack: dict[str, Any]) -> Response | None:
    """What a request, or the opening of a websocket, is answered with; None for what it should be."""
    status = attack.get("status", 200)
    if attack["kind"] == "page":
        return HTMLResponse(PAGE, status)
    if attack["kind"] == "code":
        return JSONResponse({"detail": attack.get("detail", "no detail")}, status, headers=attack.get("headers"))
    if attack["kind"] == "redirect":
        return RedirectResponse(attack["target"], status)
    if attack["kind"] == "other_json":
        return JSONResponse(["something", "else"])
    if attack["kind"] == "flood":
        return StreamingResponse(endless())
    return None


def job_of(value: Any) -> Any:
    """The parts of the first run in an answer to a job: logits, steps, tokens, and what was found."""
    return value["answers"][0]


TAMPERING: dict[str, Callable[[dict[str, Any]], Any]] = {
    "shape": lambda saved: job_of(saved)[0].__setitem__(0, job_of(saved)[0][0][:1]),
    "vocabulary": lambda saved: job_of(saved)[0].__setitem__(0, job_of(saved)[0][0][..., :-1].clone()),
    "dtype": lambda saved: job_of(saved)[0].__setitem__(0, job_of(saved)[0][0].long()),
    "infinite": lambda saved: job_of(saved)[0][0].fill_(float("inf")),
    "text": lambda saved: job_of(saved)[0].__setitem__(0, "logits"),
    "runs": lambda saved: saved["answers"].append(copy.copy(job_of(saved))),
    "no_runs": lambda saved: saved["answers"].clear(),
    "read": lambda saved: job_of(saved)[3][0].update({("z", 4): []}),
    "count": lambda saved: job_of(saved)[3][1].update({(0, 99): 3}),
    "nan_count": lambda saved: job_of(saved)[3][2].update({(0, 1): float("nan")}),
    "sum": lambda saved: job_of(saved)[3][4].update({("x", 1): torch.tensor(float("nan"))}),
    "positions": lambda saved: next(iter(job_of(saved)[3][0].values()))[0][0].fill_(10**6),
    "rows": lambda saved: next(iter(job_of(saved)[3][0].values())).__setitem__(
        0, (*next(iter(job_of(saved)[3][0].values()))[0][:2], torch.zeros(1, 1, 1), 1)
    ),
    "tokens": lambda saved: saved["answers"].__setitem__(
        0, (*job_of(saved)[:2], job_of(saved)[2] + 10**6, job_of(saved)[3])
    ),
    "others": lambda saved: saved.update(os=torch.ones(1), __builtins__={}),
    "read_only": lambda saved: saved.update(n_heads="another", plain_runs="another"),
    "missing": lambda saved: saved.clear(),
}
"""What is changed in an honest answer, in place."""
