"""A service to test against: a real process on the loopback that speaks nnsight's remote protocol.

with Service(folder, "lmm-lens/shapes-llava") as service:
    with model.trace(**inputs, remote=service.url): ...
    service.log()[-1]["globals"]        # what the last payload asked the server to import
    service.fault("drop", after=1)      # the second request from now loses its websocket
    service.kill(); service.start()     # back on the same port
"""

import json
import os
import select
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any, Self

import httpx

SERVER = Path(__file__).with_name("server.py")
PATIENCE = 60  # seconds to start in, on a crowded machine; alone it takes three
PLAIN = {"timeout": PATIENCE, "verify": False}  # certificates take longer to read than to answer


class Nursery:
    """A process that has imported everything and forks services; one for all tests, as long as they run."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(SERVER), "--packages", sysconfig.get_path("purelib"), "--nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=tempfile.gettempdir(),  # not the repository, where lmm_lens could be found
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        )

    @classmethod
    @cache
    def get(cls) -> Self:
        return cls()

    def ask(self, **command: Any) -> dict[str, Any]:
        """The answer to a command; empty where the process that should answer has ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        return json.loads(self.process.stdout.readline() or "{}") if ready else {}


class Process:
    """A service's process, as subprocess.Popen would offer it."""

    def __init__(self, pid: int) -> None:
        self.pid, self.status = pid, None

    def poll(self) -> int | None:
        if self.status is None:
            self.status = Nursery.get().ask(poll=self.pid)["status"]
        return self.status

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        end = time.monotonic() + PATIENCE
        while self.poll() is None:
            assert time.monotonic() < end, "the service does not end"
            time.sleep(0.01)
        assert self.status is not None
        return self.status


class Service:
    """Start, watch, hurt and stop one server process; its options are explained in server.py."""

    def __init__(
        self,
        folder: str | Path,
        repo: str,
        *,
        task: str = "image-text-to-text",
        trusted: bool = False,
        text_only: bool = False,
        strict: bool = False,
    ) -> None:
        self.options = ["--packages", sysconfig.get_path("purelib"), "--model", str(folder), "--repo", repo]
        self.options += ["--task", task, *["--strict"] * strict]
        self.options += ["--trusted"] * trusted + ["--text-only"] * text_only
        self.strict = strict
        self.port = 0
        self.process: Process | None = None
        self.stderr = tempfile.NamedTemporaryFile("r")  # noqa: SIM115  (lives as long as the service)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self.process is not None, "the service is not running"
        return self.process.pid

    def start(self) -> Self:
        """Start the process, on the port it had before if it had one, and wait until it answers."""
        assert not self.alive, "the service is running already"
        nursery = Nursery.get()
        options = [*self.options, "--port", str(self.port), "--parent", str(nursery.process.pid)]
        ready = nursery.ask(start=options, stderr=self.stderr.name)
        if not ready:
            raise RuntimeError(f"the service did not start:\n{self.errors()}")
        self.port, self.process = ready["port"], Process(ready["pid"])
        httpx.get(f"{self.url}/status", **PLAIN)
        return self

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """As `kill -9`: no goodbye to anyone."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def restart(self) -> Self:
        self.kill()
        return self.start()

    def wait(self) -> int:
        """The exit status of a process that is about to end by itself."""
        assert self.process is not None
        return self.process.wait()

    def errors(self) -> str:
        self.stderr.seek(0)
        return self.stderr.read()

    def log(self) -> list[dict[str, Any]]:
        """One entry a request: payload_bytes, result_bytes, headers (names only), api_key (whether one came), globals,
        seconds, status, model_key, env; http, where it was refused at the door."""
        return httpx.get(f"{self.url}/log", **PLAIN).raise_for_status().json()

    def fault(self, kind: str | None = None, *, after: int = 0, times: int | None = None, seconds: float = 1.0) -> None:
        """Let `after` requests pass, then break `times` of them (None: all) in the way faults.py lists; None heals."""
        wanted = {"kind": kind, "after": after, "times": times, "seconds": seconds}
        httpx.post(f"{self.url}/fault", json=wanted, **PLAIN).raise_for_status()

    def attack(self, kind: str | None = None, where: str = "inline", **more: Any) -> None:
        """Do something to whoever asks, as hostile.py lists it; None does nothing more."""
        wanted = {"kind": kind, "where": where, **more} if kind else {}
        httpx.post(f"{self.url}/attack", json=wanted, **PLAIN).raise_for_status()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.stderr.close()
