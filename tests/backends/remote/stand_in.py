"""A real server in the place of the service that the wire tests start: what they ask of it, and what they cannot."""

from __future__ import annotations

import time
from typing import Any

import pytest

from lmm_lens.backends.nnsight.remote import ServerBackend

VARIABLE = "LMM_LENS_NDIF_SERVER"  # its address
LOG: list[dict[str, Any]] = []
"""One entry a request of this process, as the service's own log has them."""


def keep_a_log() -> None:
    """Have every request of this process written down."""
    post, finalize = ServerBackend._post, ServerBackend.finalize

    def posted(self: Any, request: Any, blob: bytes) -> Any:
        entry = {"payload_bytes": len(blob), "env": request.env, "model_key": request.model_key, "at": time.monotonic()}
        LOG.append({**entry, "api_key": bool(self.api_key), "globals": [], "status": "COMPLETED"})
        return post(self, request, blob)

    def finalized(self: Any, content: bytes) -> Any:
        LOG[-1] |= {"result_bytes": len(content), "seconds": time.monotonic() - LOG[-1]["at"]}
        return finalize(self, content)

    ServerBackend._post, ServerBackend.finalize = posted, finalized


class RealServer:
    """With the members of `Service`."""

    alive = True
    strict = False

    def __init__(self, url: str) -> None:
        self.url, self.port = url, int(url.rpartition(":")[2])
        keep_a_log()

    def log(self) -> list[dict[str, Any]]:
        return list(LOG)

    def errors(self) -> str:
        return ""

    def fault(self, kind: str | None = None, **more: Any) -> None:
        if kind is not None:
            pytest.skip("a real server has no faults to switch on")

    def attack(self, kind: str | None = None, *args: Any, **more: Any) -> None:
        if kind is not None:
            pytest.skip("a real server attacks nobody")

    def kill(self) -> None:
        """It is not ours to end; whoever waits for it too long fails without."""

    def restart(self) -> None:
        pytest.skip("a real server is not restarted for a test")

    start = restart
