"""What can go wrong with a service, switched on by POST /fault."""

from typing import Any

from fastapi import HTTPException

KINDS = (
    "old",  # says that its nnsight is 0.8.0
    *("refuse", "needs_key", "bad_key", "version", "stall"),  # at the door; "stall" keeps a request waiting there
    *("drop", "hang", "error", "die", "slow", "cold"),  # of a job; "cold": its model has to be deployed first
    *("garbled", "lost_result"),  # of its answer
)
OUT_OF_MEMORY = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.25 GiB "
    "of which 1.12 GiB is free."
)
OLDEST = "99.0.0"


class Faults:
    """At most one fault at a time: `after` requests pass first, then it strikes `times` requests (None: all)."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.kind: str | None = None
        self.after, self.times, self.seconds = 0, None, 0.0

    def switch(self, wanted: dict[str, Any]) -> None:
        unknown = set(wanted) - {"kind", "after", "times", "seconds"}
        if unknown or wanted.get("kind") not in (None, *KINDS):
            raise HTTPException(422, f"no such fault: {wanted}; kinds: {', '.join(KINDS)}")
        self.clear()
        self.kind = wanted.get("kind")
        self.after, self.times = int(wanted.get("after") or 0), wanted.get("times")
        self.seconds = float(wanted.get("seconds") or 1.0)

    def strike(self) -> str | None:
        """The fault that hits this request; call it once a request."""
        if self.kind is None:
            return None
        if self.after > 0:
            self.after -= 1
            return None
        if self.times is not None:
            if self.times <= 0:
                return None
            self.times -= 1
        return self.kind

    @staticmethod
    def gate(kind: str | None, key: str | None, version: str | None) -> None:
        """Refuse at the door, in NDIF's words: a malformed key is quoted back, so that clients must redact it."""
        if kind == "refuse":
            raise HTTPException(503, "The service is being redeployed. Please try again later.")
        if kind == "needs_key" and not key:
            raise HTTPException(
                401, "Missing or invalid API key. Please visit https://login.ndif.us/ to create a new one."
            )
        if kind == "bad_key":
            raise HTTPException(400, f"Invalid API key format: '{key}'. API keys must be in the format: xxxxxxxx-xxxx")
        if kind == "version":
            raise HTTPException(
                400,
                f"Client nnsight version {version} is below the minimum supported {OLDEST}. "
                "Please `pip install --upgrade nnsight`.",
            )
