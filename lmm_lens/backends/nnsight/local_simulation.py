"""`remote="local"`: everything that a server would do to a job, in this process."""

from __future__ import annotations

from typing import Any

from nnsight.intervention.backends.local import LocalSimulationBackend
from nnsight.schema.request import RequestModel

from .travel import by_source, check_payload


class CheckedSimulation(LocalSimulationBackend):  # type: ignore[misc]  # nnsight has no types
    """nnsight's simulation with what a server adds: a check of the payload, and eager attention as asked for."""

    def __call__(self, tracer: Any) -> None:
        """Pack, unpack and run the job; RemoteError for one that refers to this library by name."""
        with by_source():
            check_payload(RequestModel.serialize(tracer, compress=False))
            before = self.model._remoteable_get_env()
            self.model._remoteable_set_env({**before, "attn_implementation": "eager"})
            try:
                super().__call__(tracer)
            finally:
                self.model._remoteable_set_env(before)
