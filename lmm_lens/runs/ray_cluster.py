"""Which Ray workers a sweep uses, and the way to their cluster."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..errors import ScoreError

NOT_BEGUN, TRIES = "Starting Ray client server failed", 3


@dataclass(frozen=True)
class RayCluster:
    """Which workers to use.

    Attributes:
        workers: how many; None for as many as the cluster has room for, or two on this machine.
        address: of a running cluster, as in "auto", "10.0.0.1:6379" or "ray://10.0.0.1:10001"; None for this machine.
        num_cpus: of each worker, for Ray's placement.
        num_gpus: of each worker; with 0 a worker sees no GPU.
        resources: further ones that each worker needs, by the cluster's own names.
        patience: seconds after which a worker that has not answered, and has taken ten times as long as any block
            before, is given up; and how long a sweep that has lost all its workers waits for another.
    """

    workers: int | None = None
    address: str | None = None
    num_cpus: float = 1
    num_gpus: float = 0
    resources: Mapping[str, float] = field(default_factory=dict)
    patience: float = 300.0

    def __post_init__(self) -> None:
        n = self.workers
        if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
            raise ScoreError(f"expected a number of Ray workers of at least 1, given {n!r}")
        for name, amount in self.needs.items():
            if not amount >= 0:
                raise ScoreError(f"a Ray worker cannot need {amount!r} {name}")
        if not self.patience > 0:
            raise ScoreError(f"patience is a number of seconds above 0, given {self.patience!r}")

    @property
    def needs(self) -> dict[str, float]:
        """What each worker takes of the cluster, by Ray's names."""
        return {"CPU": self.num_cpus, "GPU": self.num_gpus, **self.resources}


RayLike = int | str | RayCluster | None


def as_cluster(given: RayLike) -> RayCluster | None:
    """What a user may give as `ray=`."""
    if given is None or isinstance(given, RayCluster):
        return given
    if isinstance(given, str):
        return RayCluster(address=given)
    if isinstance(given, bool) or not isinstance(given, int):
        raise ScoreError(
            f"expected ray= as a number of local workers, the address of a cluster or a RayCluster, given {given!r}"
        )
    return RayCluster(workers=given)


@contextmanager
def connected(cluster: RayCluster) -> Iterator[Any]:
    """Ray, connected; what was started or connected here ends here."""
    import logging

    try:
        import ray
    except ImportError as error:
        raise ScoreError(f"ray= needs Ray, which cannot be loaded: {error}\n  pip install 'lmm-lens[ray]'") from error
    if ray.is_initialized():
        if cluster.address not in (None, "auto"):
            raise ScoreError(
                f"this process is connected to a Ray cluster already, and cannot go to {cluster.address!r}\n"
                "  call ray.shutdown() first, or give ray='auto' to use that one"
            )
        yield ray
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if cluster.address is None:
            n = cluster.workers or 2
            ray.init(
                "local",
                num_cpus=max(1, int(n * cluster.num_cpus + 0.999)),
                resources={name: n * amount for name, amount in cluster.resources.items()},
                include_dashboard=False,
                **quiet,
            )
        else:
            check_listening(cluster.address)
            _init(ray, cluster.address, quiet)
    except ScoreError:
        raise
    except (ImportError, OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ScoreError(refusal(cluster.address, error)) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _init(ray: Any, address: str, options: dict[str, Any]) -> None:
    """Connect to a cluster.

    For each client that comes by ray:// the cluster forks a server, out of a process with threads in gRPC: now and then
    the child dies before it begins. Another is as good as new.
    """
    for _ in range(TRIES - 1):
        try:
            ray.init(address, **options)
        except ConnectionAbortedError as error:
            if NOT_BEGUN not in str(error):
                raise
        else:
            return
    ray.init(address, **options)


def refusal(address: str | None, error: Exception) -> str:
    """What to say, and to do, where Ray could not connect for this reason."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    said = lines[-1] if lines[0].endswith(":") else lines[0]  # ... from server: and its traceback, the reason last
    token = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN as where it was started"
    advice = "start one with `ray start --head`, or give a number of workers to use this machine"
    if "auth" in str(error).lower() or "token" in str(error).lower():
        advice = f"the cluster asks for a token: {token}"
    elif NOT_BEGUN in str(error):
        advice = "the logs of its head say why"
    elif isinstance(error, ImportError):
        advice = "pip install 'lmm-lens[ray]'"
    elif (address or "").startswith("ray://"):  # something listens; a client that lacks the token hears nothing more
        advice = f"if the cluster asks for a token, {token}"
    return f"no Ray cluster can be used at {address or 'this machine'!r}: {said}\n  {advice}"


def check_listening(address: str) -> None:
    """ScoreError where nothing answers at HOST:PORT or ray://HOST:PORT; Ray itself tries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():  # "auto", which Ray resolves
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ScoreError(
            f"no Ray cluster can be used at {address!r}: nothing listens there ({error})\n"
            "  start one with `ray start --head`, or give a number of workers to use this machine"
        ) from error
