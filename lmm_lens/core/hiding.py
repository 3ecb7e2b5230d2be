"""Steps in which all that is done to a pattern is to hide keys from its row: a mask for the kernel does that."""

from __future__ import annotations

from jaxtyping import Bool
from torch import Tensor

from .attention import AttentionCall
from .tapping import Tapping


def hidden_in_step(tapping: Tapping, layer: int, call: AttentionCall) -> Bool[Tensor, "batch 1 1 key"] | None:
    """The keys that the row of a step is left to see.

    Under this mask the kernel does what the layer's only edit would do, at its own price; it is reported as that.

    Returns:
        None where anything else is to be done, nothing is, or the row is not sure to see something.
    """
    at = "pattern", layer
    stop = tapping.course.stops.get(at)
    scope = None if stop is None else stop.hides
    n_rows, _, length, _ = call.query.shape
    last = tapping.first + length - 1
    if stop is None or scope is None or length > 1 or not call.takes_a_mask:
        return None
    if not scope.is_one_in_steps(last) or scope.holds_step(last):
        return None
    joined = tapping.join(stop.taps, stop.known_as, n_rows, length, call.query.device)
    if joined is None or joined.rows.window is None:
        return None
    tapping.fired.add(at)
    rows, mask = joined.rows, call.mask
    context = tapping.place(stop.taps[0], rows, rows.valid, length)
    n_keys, n_heads = call.key.shape[2], tapping.n_heads[layer]

    def make() -> tuple[Tensor, Tensor]:
        hidden = context.keys(scope, n_keys)[:, None, None]
        seen = hidden if mask is None else hidden & mask
        left = ~hidden if mask is None else ~hidden & mask
        return left, seen.flatten(1).any(1) * n_heads  # rows that see none of them are not edited

    known_as = "hidden", id(scope), id(mask), n_heads, rows.valid.device
    left: Tensor
    left, n_edited = context.state.columns.get(known_as, (scope, mask), n_keys, context.n_seen, make)
    context.note(n_edited)
    return left
