"""Hand what nnsight serves of a vision tower to taps: inside a trace, before the decoder, here or on a server.

The tower runs once, whatever the model does afterwards. Towers that pack pictures have no dimension of rows: theirs is
one row of all pictures.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..errors import HookError
from .envoys import attention_of
from .flat import in_rows
from .layer_envoys import LayerEnvoys
from .tapping import Tapping


def run_tower_taps(tapping: Tapping, layers: list[LayerEnvoys], n_tokens: int) -> None:
    """Pass the tower through its taps, which are bound to rows of so many tokens."""
    tapping.fired, tapping.first = set(), 0
    for envoys in layers:
        layer = envoys.layer
        sites = [site for site, number in tapping.taps if number == layer]
        if "resid_pre" in sites:
            x = envoys.module.input
            new = _through(tapping, x, "resid_pre", envoys, n_tokens)
            if new is not x:
                envoys.module.input = new
        if "pattern" in sites:
            seen, operation, weights = attention_of(envoys, tapping.values)
            _check(seen.shape[2], layer, n_tokens)
            before = seen.out
            tapping.attend(layer, seen)
            if seen.out is not before or any(tap.edits for tap in tapping.taps["pattern", layer]):
                kept = envoys.keeps_weights or envoys.from_weights
                operation.output = (seen.out, seen.weights if kept else weights)
        if "z" in sites:
            x = envoys.output_projection.input
            new = _through(tapping, x, "z", envoys, n_tokens)
            if new is not x:
                envoys.output_projection.input = new
        for site in ("attn_out", "mlp_out", "resid_post"):
            if site in sites:
                envoy = envoys.with_output(site)
                entered = envoy.input if site == "mlp_out" else None  # before the output, as it runs
                output = envoy.output
                given = output[0] if isinstance(output, tuple) else output
                new = _through(tapping, given, site, envoys, n_tokens, entered)
                if new is not given:
                    envoy.output = (new, *output[1:]) if isinstance(output, tuple) else new


def _through(tapping: Tapping, x: Tensor, site: str, envoys: LayerEnvoys, n_tokens: int, entered: Any = None) -> Tensor:
    """An activation of any of the shapes that towers have, passed through the taps of its hook point."""
    rows = as_tower_rows(in_rows(x, entered))
    _check(rows.shape[1], envoys.layer, n_tokens)
    if site == "z":
        rows = rows.unflatten(-1, (envoys.n_heads, envoys.d_head))
    found = tapping.through(rows, site, envoys.layer)
    return x if found is rows else found.reshape(x.shape)


def as_tower_rows(x: Tensor) -> Tensor:
    """An activation as [row, token, width]; HookError for a map of rows and columns."""
    if x.ndim not in (2, 3):
        raise HookError(
            f"this vision tower runs on {tuple(x.shape)}, which has no sequence of tokens\n"
            "  lmm-lens reads and edits towers whose tokens stand in a row"
        )
    return x if x.ndim == 3 else x[None]


def _check(length: int, layer: int, n_tokens: int) -> None:
    """HookError where a layer runs on other tokens than the first."""
    if length != n_tokens:
        raise HookError(
            f"layer {layer} of the vision tower runs on {length} tokens, the first on {n_tokens}: this tower merges "
            "patches on its way, so that rows of its first layer say nothing here\n  read and edit the layers before"
        )
