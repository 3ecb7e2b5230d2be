"""Hand what nnsight serves of a vision tower to taps: inside a trace, before the decoder, here or on a server.

The tower runs once, whatever the model does afterwards. Towers that pack pictures have no dimension of rows: theirs is
one row of all pictures.
"""

from __future__ import annotations

from torch import Tensor

from .envoys import LEAVING, attend_through, attention_of, leaving
from .layer_envoys import LayerEnvoys
from .packed_envoys import attend_by_parts
from .tapping import Tapping
from .tower_rows import as_rows, check_length


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
            if envoys.packed:
                attend_by_parts(tapping, envoys, n_tokens)
            else:
                seen, operation, weights = attention_of(envoys, tapping.values)
                check_length(seen.shape[2], layer, n_tokens)
                attend_through(tapping, envoys, seen, operation, weights)
        if "z" in sites:
            x = envoys.output_projection.input
            new = _through(tapping, x, "z", envoys, n_tokens)
            if new is not x:
                envoys.output_projection.input = new
        for site in LEAVING:
            if site in sites:
                envoy, output, given, x = leaving(envoys, site)
                new = _through(tapping, x, site, envoys, n_tokens)
                if new is not x:
                    new = new.reshape(given.shape)
                    envoy.output = (new, *output[1:]) if isinstance(output, tuple) else new


def _through(tapping: Tapping, x: Tensor, site: str, envoys: LayerEnvoys, n_tokens: int) -> Tensor:
    """An activation of any of the shapes that towers have, passed through the taps of its hook point."""
    rows = as_rows(x, envoys.layer)
    check_length(rows.shape[1], envoys.layer, n_tokens)
    if site == "z":
        rows = rows.unflatten(-1, (envoys.n_heads, envoys.d_head))
    found = tapping.through(rows, site, envoys.layer)
    return x if found is rows else found.reshape(x.shape)
