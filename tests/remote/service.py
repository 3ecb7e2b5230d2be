"""A service to test against: a real process on the loopback that speaks nnsight's remote protocol.

with Service(folder, "lmm-lens/shapes-llava") as service:
    with model.trace(**inputs, remote=service.url): ...
    service.log()[-1]["globals"]        # what the last payload asked the server to import
    service.fault("drop", after=1)      # the second request from now loses its websocket
    service.kill(); service.start()     # back on the same port
"""

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any, Self

import httpx

SERVER = Path(__file__).with_name("server.py")
PATIENCE = 60  # seconds to start in, on a crowded machine; alone it takes three


class Service:
    """Start, watch, hurt and stop one server process; `trusted` and `text_only` are explained in server.py."""

    def __init__(
        self,
        folder: str | Path,
        repo: str,
        *,
        task: str = "image-text-to-text",
        trusted: bool = False,
        text_only: bool = False,
        inline_limit: int = 1 << 20,
    ) -> None:
        self.options = ["--packages", sysconfig.get_path("purelib"), "--model", str(folder), "--repo", repo]
        self.options += ["--task", task, "--inline-limit", str(inline_limit), "--parent", str(os.getpid())]
        self.options += ["--trusted"] * trusted + ["--text-only"] * text_only
        self.port = 0
        self.process: subprocess.Popen[str] | None = None
        self.stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115  (lives as long as the service)

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
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(SERVER), *self.options, "--port", str(self.port)],
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            text=True,
            cwd=tempfile.gettempdir(),  # not the repository, where lmm_lens could be found
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        )
        assert self.process.stdout is not None
        ready = self.process.stdout.readline()  # empty when the process ends
        if not ready:
            self.kill()
            raise RuntimeError(f"the service did not start:\n{self.errors()}")
        self.port = json.loads(ready)["port"]
        httpx.get(f"{self.url}/status", timeout=PATIENCE)
        return self

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """As `kill -9`: no goodbye to anyone."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            if self.process.stdout is not None:
                self.process.stdout.close()
            self.process = None

    def restart(self) -> Self:
        self.kill()
        return self.start()

    def wait(self) -> int:
        """The exit status of a process that is about to end by itself."""
        assert self.process is not None
        return self.process.wait(timeout=PATIENCE)

    def errors(self) -> str:
        self.stderr.seek(0)
        return self.stderr.read()

    def log(self) -> list[dict[str, Any]]:
        """One entry a request: payload_bytes, result_bytes, headers (names only), api_key (whether one came), globals,
        seconds, status, model_key, env; http, where it was refused at the door."""
        return httpx.get(f"{self.url}/log", timeout=PATIENCE).raise_for_status().json()

    def fault(self, kind: str | None = None, *, after: int = 0, times: int | None = None, seconds: float = 1.0) -> None:
        """Let `after` requests pass, then break `times` of them (None: all) in the way faults.py lists; None heals."""
        wanted = {"kind": kind, "after": after, "times": times, "seconds": seconds}
        httpx.post(f"{self.url}/fault", json=wanted, timeout=PATIENCE).raise_for_status()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.stderr.close()
