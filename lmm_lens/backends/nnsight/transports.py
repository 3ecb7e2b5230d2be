"""Where jobs run: here, here as a server would get them, or on a server."""

from __future__ import annotations

from typing import Any

from ...errors import LensError
from ..address import Address, without_login
from ..base import Remote
from .wrap import model_key
from .wrapped_model import WrappedModel


def checked_remote(remote: Remote) -> Remote:
    """Where to run, an address as such; LensError for anything else."""
    if isinstance(remote, (bool, Address)) or remote == "local":
        return remote
    if str(remote).startswith(("http://", "https://")):
        return Address(str(remote))
    raise LensError(
        f'remote is False, True (NDIF), "local" or the address of a server, as in "http://127.0.0.1:5001", '
        f"given {without_login(remote)!r}"
    )


def runs_here(remote: Remote) -> bool:
    """Whether it is this process that runs the model."""
    return not remote or remote == "local"


def transport_to(
    remote: Remote, model: WrappedModel, served_as: str | None, timeout: float, is_of_a_server: bool
) -> Any:
    """nnsight's backend for one job; None runs it in this process as it is.

    Args:
        remote: where to run.
        model: the model.
        served_as: by which name a server knows it.
        timeout: seconds without news from a server after which to give up.
        is_of_a_server: whether the lens was opened for one.

    Raises:
        LensError: there are no weights here.
        ModelError: the model cannot run.
    """
    if runs_here(remote):
        if not model.has_weights and is_of_a_server:
            raise LensError(
                "this lens was opened for a server and has no weights here\n"
                "  give remote=... to the call, or open the lens with remote=False"
            )
        model.check_runnable()
    if not remote:
        return None
    if remote == "local":
        from .local_simulation import CheckedSimulation

        return CheckedSimulation(model.envoy)
    from .remote import ServerBackend

    address = None if remote is True else remote
    env = {**model.envoy._remoteable_get_env(), "attn_implementation": "eager"}
    return ServerBackend(model_key(model.envoy, served_as), address, env, timeout)
