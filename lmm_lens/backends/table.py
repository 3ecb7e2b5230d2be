"""Backends by name; each framework is imported when a lens asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..adapters import Adapter
from ..errors import LensError, ModelError, unknown
from .address import without_login
from .base import Backend, Remote
from .native import NativeBackend
from .requirements import importing

BACKENDS = ("native", "transformer_lens", "nnsight")


def check_backend(name: str) -> str:
    """The name, if it is a backend's; LensError that lists them otherwise."""
    if name not in BACKENDS:
        raise LensError(unknown("backend", name, BACKENDS))
    return name


def backend_of(
    name: str,
    adapter: Adapter,
    *,
    around: Sequence[nn.Module],
    envoy: Any,
    bridge: Any,
    served_as: str | None,
    remote: Remote,
    timeout: float,
) -> Backend:
    """The backend of a name; LensError where it is to run elsewhere and cannot, ModelError without its framework.

    Args:
        name: one of `BACKENDS`.
        adapter: of the model.
        around: what the user holds the model in.
        envoy: the model in nnsight's wrapping, if there is one already.
        bridge: the model as a TransformerBridge, if there is one already.
        served_as: by which name a server knows the model.
        remote: where to run.
        timeout: seconds without news from a server after which to give up.
    """
    if name != "native" and adapter.own_ways:
        raise ModelError(
            f"{type(adapter.model).__name__} is called as {type(adapter).__name__} says it "
            f"({', '.join(adapter.own_ways)}), which {name} does not do\n  use backend='native'"
        )
    if name == "nnsight":
        with importing(name):
            from .nnsight import NNsightBackend

        return NNsightBackend(adapter, envoy, served_as, remote, timeout)
    if remote:
        raise LensError(f'remote={without_login(remote)!r} needs backend="nnsight", given backend={name!r}')
    if name == "transformer_lens":
        with importing(name):
            from .transformer_lens import TransformerLensBackend

        return TransformerLensBackend(adapter, bridge)
    return NativeBackend(adapter, around)
