"""Start NDIF's own services on the loopback, deploy models, and stop what was started.

    with NDIF(Path(".venv/ndif")) as server:
        server.deploy({"lmm-lens/shapes-llava": folder})
        Lens.from_pretrained("lmm-lens/shapes-llava", backend="nnsight", remote=server.url)

Redis, an object store, Ray, NDIF's controller and its API run in an environment without lmm-lens, each in a process
group of its own, and are ended as such: `ray stop` would end every Ray on the machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import httpx

INSIDE = Path(__file__).with_name("inside")
TASK = "image-text-to-text"
PRETENDED_BYTES = 8_000_000_000  # of a GPU, and of a model 1e8: what placement counts with
PATIENCE = 180  # seconds for each service to answer; on a quiet machine all of them take 30


class NDIF:
    """One server.

    Args:
        environment: a virtual environment made of requirements.txt.
        port: the first of eleven; Ray's client also takes some from 23000 on.
        logs: folder for what the services said, when all is over; None for nowhere.
        spools: whether requests above 1 MiB are taken, which ndif 0.1.2 by itself does not.
    """

    def __init__(self, environment: Path, port: int = 18000, logs: Path | None = None, spools: bool = True) -> None:
        self.bin, self.port, self.spools = environment.resolve() / "bin", port, spools
        self.url = f"http://127.0.0.1:{port}"
        self.logs = logs
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        taken = [port for port in range(self.port, self.port + 11) if _listens(port)]
        if taken:
            raise SystemExit(f"port {taken[0]} is taken: stop what listens there, or choose others with --port")
        self.home = Path(tempfile.mkdtemp(prefix="ndif-"))  # short: Ray's sockets are below it
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        if self.logs is not None:
            shutil.copytree(self.home / "logs", self.logs, dirs_exist_ok=True)
            for said in self.home.glob("ray/session_latest/logs/*"):
                if said.is_file() and said.stat().st_size:
                    shutil.copy(said, self.logs / f"ray-{said.name}")
        shutil.rmtree(self.home, ignore_errors=True)

    # ------------------------------------------------------------------ starting

    def _environment(self) -> dict[str, str]:
        base = self.port
        token = self.home / "ray.token"
        if not token.exists():
            token.touch(mode=0o600)
            token.write_text(secrets.token_hex(16))
        ours = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR", "USER") if name in os.environ}
        return ours | {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "PYTHONPATH": str(INSIDE),
            "NDIF_HOME": str(self.home),
            "NDIF_RAY_TEMP_DIR": str(self.home / "ray"),
            "NDIF_RAY_HEAD_PORT": str(base + 4),
            "NDIF_RAY_DASHBOARD_PORT": str(base + 5),
            "NDIF_API_PORT": str(base),
            "NDIF_REDIS_URL": f"redis://127.0.0.1:{base + 1}",
            "NDIF_API_URL": self.url,
            "NDIF_OBJECT_STORE_URL": f"http://127.0.0.1:{base + 2}",
            "NDIF_RAY_ADDRESS": f"ray://127.0.0.1:{base + 3}",
            "GUNICORN_CMD_ARGS": f"--bind 127.0.0.1:{base}",  # the service's own configuration says 0.0.0.0
            "NDIF_DEFAULT_MODEL_ACTOR_CLASS": "cpu_actor.Actor",
            "NDIF_DEFAULT_DTYPE": "float32",
            "NDIF_DEFAULT_PADDING_BIAS": "0",
            "NDIF_SANDBOX_POOL_SIZE": "2",  # each is a Python with torch and nnsight, ready, of 0.4 GB
            "NDIF_STATUS_TTL_S": "1",
            "HF_HOME": str(self.home / "hf"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1",
            "GRPC_ENABLE_FORK_SUPPORT": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),  # not that of other Rays here
        }

    def _start(self) -> None:
        base = self.port
        (self.home / "logs").mkdir()
        redis = shutil.which("redis-server")
        if redis is None:
            raise SystemExit("redis-server is not installed: `apt-get install redis-server`, of which only it is used")
        quiet = ["--save", "", "--appendonly", "no", "--dir", self.home]
        self._keep("redis", [redis, "--port", base + 1, "--bind", "127.0.0.1", *quiet])
        self._keep("store", ["moto_server", "-H", "127.0.0.1", "-p", base + 2])
        resources = {"head": 10, "cuda_memory_bytes": PRETENDED_BYTES, "cpu_memory_bytes": PRETENDED_BYTES}
        self._keep(
            "ray",
            # as ndif's services/ray/start.sh, but on the loopback alone and with a GPU that is only a number
            [
                *("ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={base + 4}"),
                *("--num-cpus=8", "--num-gpus=1", f"--resources={json.dumps(resources)}"),
                *(f"--ray-client-server-port={base + 3}", "--object-store-memory=200000000"),
                *("--min-worker-port=0", "--max-worker-port=0"),
                *("--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={base + 5}"),
                *(f"--dashboard-agent-grpc-port={base + 6}", f"--dashboard-agent-listen-port={base + 7}"),
                *(f"--metrics-export-port={base + 8}", f"--object-manager-port={base + 9}"),
                *(f"--node-manager-port={base + 10}", "--disable-usage-stats", f"--temp-dir={self.home / 'ray'}"),
            ],
        )
        for name, port in {"redis": base + 1, "store": base + 2, "ray": base + 3}.items():
            self._await(name, lambda port=port: _listens(port))
        self._await("ray", lambda: _listens(base + 5))  # its dashboard, which the controller asks for the nodes
        self._run(
            "controller",
            ["python", "-m", "ndif.services.ray.deployments.controller.controller"],
            RAY_ADDRESS=f"127.0.0.1:{base + 4}",
        )
        configuration = "gunicorn_spools" if self.spools else "ndif.services.api.gunicorn_conf"
        self._keep("api", ["gunicorn", "--config", f"python:{configuration}", "ndif.services.api.app:app"])
        self._await("api", self._is_connected)

    def _keep(self, name: str, command: list[Any]) -> None:
        """Start in the background, in a process group of its own, its output in a file."""
        with (self.home / "logs" / f"{name}.log").open("wb") as log:
            self.running[name] = subprocess.Popen(
                [_program(self.bin, command[0]), *map(str, command[1:])],
                env=self._environment(),
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _run(self, name: str, command: list[Any], **more: str) -> None:
        """Run to its end; SystemExit with what it said, if it fails."""
        done = subprocess.run(
            [_program(self.bin, command[0]), *map(str, command[1:])],
            env=self._environment() | more,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        (self.home / "logs" / f"{name}.log").write_text(done.stdout + done.stderr)
        if done.returncode:
            raise SystemExit(f"{name} failed ({done.returncode}):\n{(done.stdout + done.stderr)[-3000:]}")

    def _await(self, name: str, ready: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not ready():
            if self.running[name].poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{name} does not answer:\n{self.log(name)[-3000:]}")
            time.sleep(0.3)

    def _is_connected(self) -> bool:
        try:
            return httpx.get(f"{self.url}/connected", timeout=10).status_code == 200
        except httpx.HTTPError:
            return False

    # ------------------------------------------------------------------ what it is asked

    def deploy(self, models: Mapping[str, Path]) -> None:
        """Serve checkpoint folders under names: of the Hub, or the folder itself.

        `ndif deploy NAME` would build the model's key with nnsight, which asks the Hub and cannot build a
        vision-language model's; and `size_bytes` spares an estimate that nnsight 0.8.1 no longer gives to ndif 0.1.2.
        """
        listed = []
        for name, folder in models.items():
            if name != str(folder):
                self._into_the_cache(name, folder)
            key = json.dumps({"repo_id": name, "revision": None, "task": TASK})
            key = f"nnsight.modeling.transformers.TransformersModel:{key}"
            listed.append({"checkpoint": name, "model_key": key, "task": TASK, "size_bytes": 10**8, "dtype": "float32"})
        path = self.home / "models.yaml"
        path.write_text(json.dumps({"models": listed}))  # JSON is YAML
        self._run("deploy", ["ndif", "deploy", "-f", path])

    def _into_the_cache(self, name: str, folder: Path) -> None:
        """As if it had been downloaded from the Hub."""
        where = self.home / "hf" / "hub" / f"models--{name.replace('/', '--')}"
        shutil.copytree(folder, where / "snapshots" / "0")
        (where / "refs").mkdir()
        (where / "refs" / "main").write_text("0")

    def versions(self) -> dict[str, str]:
        """Of Python and of packages, as the server itself says."""
        told = httpx.get(f"{self.url}/env", timeout=PATIENCE).raise_for_status().json()
        return {"python": told["python_version"].split()[0], **told["packages"]}

    def log(self, name: str) -> str:
        """What a service has said so far."""
        return (self.home / "logs" / f"{name}.log").read_text(errors="replace")

    def stop(self) -> None:
        """End every service, and wait for it."""
        for name in reversed(list(self.running)):
            process = self.running.pop(name)
            for number, seconds in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                end = time.monotonic() + seconds
                while _group_lives(process.pid) and time.monotonic() < end:
                    process.poll()
                    time.sleep(0.1)


def _program(folder: Path, name: str) -> str:
    return str(folder / name) if (folder / name).exists() else name


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _listens(port: int) -> bool:
    with socket.socket() as asked:
        return asked.connect_ex(("127.0.0.1", port)) == 0
