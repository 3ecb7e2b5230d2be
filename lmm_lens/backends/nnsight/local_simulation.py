"""`remote="local"`: everything that a server would do to a job, in this process."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Any

from nnsight.intervention.backends.local import LocalSimulationBackend
from nnsight.schema.request import RequestModel

from ...errors import RemoteError
from .travel import by_source, check_payload, imports_of

SERVED = frozenset({"torch", "numpy", "transformers", "accelerate", "diffusers", "einops", "peft", "nnsight"})
"""What nnsight takes every server to have, wherever it lies here."""


class CheckedSimulation(LocalSimulationBackend):  # type: ignore[misc]  # nnsight has no types
    """nnsight's simulation with what a server adds: a check of the payload, and eager attention as asked for."""

    def __call__(self, tracer: Any) -> None:
        """Pack, unpack and run the job.

        Raises:
            RemoteError: it refers by name to this library, or to modules that are not installed.
        """
        with by_source():
            payload = RequestModel.serialize(tracer, compress=False)
            check_payload(payload)
            check_installed(payload)
            before = self.model._remoteable_get_env()
            self.model._remoteable_set_env({**before, "attn_implementation": "eager"})
            try:
                super().__call__(tracer)
            finally:
                self.model._remoteable_set_env(before)

    def _hide_local_modules(self) -> dict[str, Any]:
        """Only cloudpickle, which would write what it unpacks into the classes that it has packed.

        What unpacking would miss `check_installed` has seen. nnsight takes most modules out of `sys.modules` and
        folders out of `sys.path` meanwhile. Another thread that imports something then gets a second copy of it, or an
        error; and the folders come back behind all others. (Who packs another job waits, see `by_source`.)
        """
        names = [name for name in sys.modules if name.partition(".")[0] == "cloudpickle"]
        return {"modules": {name: sys.modules.pop(name) for name in names}, "paths": []}


def check_installed(payload: bytes) -> None:
    """RemoteError for a payload that refers by name to modules of this machine's own, which no server has."""
    roots = {module.partition(".")[0] for module, _ in imports_of(payload)}
    local = sorted(root for root in roots - SERVED - sys.stdlib_module_names if not _is_installed(root))
    if local:
        raise RemoteError(
            f"this cannot run on a server, which does not have {', '.join(local)}: here it is imported from a "
            "folder, not installed\n  define what the job uses in the notebook or script that sends it, or "
            "cloudpickle.register_pickle_by_value(module) before"
        )


def _is_installed(root: str) -> bool:
    """Whether a module comes from where packages are installed."""
    try:
        spec = find_spec(root)
    except ValueError:  # one that was made and not imported
        return False
    if spec is None:
        return False
    places = [spec.origin or "", *(spec.submodule_search_locations or ())]
    return any("site-packages" in place or "dist-packages" in place for place in places)
