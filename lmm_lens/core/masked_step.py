"""Steps whose only edit of a pattern is one that a mask for the kernel does: no output is computed twice.

To hide keys from a row is a mask. To let weights grow is one, too: `a_j (1 + g_j)`, where that sums to what it did, is
the softmax of scores raised by `log(1 + g_j)`. A head that is not edited has 0 there, which changes no bit of what it
gives.
"""

from __future__ import annotations

import math

from torch import Tensor

from .attention import AttentionCall
from .course import Stop
from .rows import Chunk, Rows
from .tapping import Tapping
from .taps import TapFunction


def mask_of_step(tapping: Tapping, layer: int, call: AttentionCall) -> Tensor | None:
    """What the kernel of a layer is to be given in place of its mask, [batch, 1 or head, 1, key].

    Under it the kernel does what the layer's only edit would do; it is reported as that.

    Returns:
        None where anything else is to be done, or nothing is.
    """
    stop = tapping.course.stops.get(("pattern", layer))
    if stop is None or not stop.adds or call.query.shape[2] > 1:
        return None
    hidden = None if stop.hides is None else _hidden(tapping, stop.hides, stop, call)
    return hidden if hidden is not None or stop.growth is None else _raised(tapping, stop.growth, stop, call)


def _hidden(tapping: Tapping, scope: Rows, stop: Stop, call: AttentionCall) -> Tensor | None:
    """The keys that the row is left to see, Bool; None also where it is not sure to see something."""
    if not call.takes_a_mask:
        return None
    if not scope.is_one_in_steps(tapping.first) or scope.holds_step(tapping.first):
        return None
    rows = _rows(tapping, stop, call)
    if rows is None:
        return None
    context, mask = tapping.place(stop.taps[0], rows, rows.valid, 1), call.mask
    n_keys, n_heads = call.key.shape[2], tapping.n_heads[context.layer]

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


def _raised(tapping: Tapping, growth: TapFunction, stop: Stop, call: AttentionCall) -> Tensor | None:
    """What is added to the row's scores, in their precision."""
    tap = stop.taps[0]
    if not call.takes_a_bias or call.query.shape[1] != tapping.n_heads[tap.layer]:
        return None
    rows = _rows(tapping, stop, call)
    if rows is None:
        return None
    context = tapping.place(tap, rows, rows.valid, 1, n_keys=call.key.shape[2])
    raised = growth(call.probabilities(rows), context).log1p_()
    return raised if call.mask is None else raised.masked_fill_(~call.mask, -math.inf)


def _rows(tapping: Tapping, stop: Stop, call: AttentionCall) -> Chunk | None:
    """The row of the step, if the edit is of all batch rows; the layer has then been reached."""
    joined = tapping.join(stop.taps, stop.known_as, call.query.shape[0], 1, call.query.device)
    if joined is None or joined.rows.window is None:
        return None
    tapping.fired.add(("pattern", stop.taps[0].layer))
    return joined.rows
