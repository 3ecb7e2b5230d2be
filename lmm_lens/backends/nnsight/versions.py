"""What is needed of a server, looked at before the first job goes there; docs/howto/remote.md has the same list."""

from __future__ import annotations

import json
import re
import threading
from typing import Any

import httpx

from ...errors import RemoteError
from ..address import Address
from .connection import CONNECT_SECONDS, ask

NEEDS = {
    "nnsight": (
        (0, 8, 1),
        "0.8.0 leaves a model's attention as it is, whatever a request asks for, so that none can be read, and older "
        "ones speak another protocol",
    ),
    "transformers": ((5,), "older ones have other operations in their layers and attention, by which these are read"),
}
"""The oldest version of a package, and why."""

_known: set[str] = set()
_lock = threading.Lock()


def check_versions(address: Address) -> None:
    """Look at a server's versions, once in this process.

    A server that does not tell them is not refused for it.

    Raises:
        RemoteError: one of them is too old.
    """
    with _lock:
        if address in _known:
            return
    try:
        reply = ask("GET", f"{address}/env", CONNECT_SECONDS, headers=address.headers)
        packages = json.loads(reply.body)["packages"] if reply.status == 200 else {}
    except (httpx.HTTPError, RemoteError, ValueError, KeyError, TypeError, RecursionError):
        packages = {}
    for name, (least, why) in NEEDS.items():
        told = packages.get(name) if isinstance(packages, dict) else None
        if _older(told, least):
            wanted = ".".join(map(str, least))
            raise RemoteError(
                f"{address} runs {name} {told}, and {wanted} or later is needed there: {why}\n"
                f"  nothing was sent; whoever runs the server can upgrade it: pip install '{name}>={wanted}'"
            )
    with _lock:
        _known.add(address)


def _older(told: Any, least: tuple[int, ...]) -> bool:
    """Whether a version is older; one that is not understood is not."""
    numbers = re.match(r"\d+(\.\d+)*", told) if isinstance(told, str) and len(told) < 100 else None
    return numbers is not None and tuple(int(part) for part in numbers[0].split(".")) < least
