"""The sink tokens of each layer, found anew in every pass and left in the run for edits and scores of the pattern."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InterventionError
from .kernels import sink_score
from .taps import TapContext

SinkKey = tuple[tuple[int, ...], float, int | None]
"""A rule: sink dimensions, threshold, and the seed of a control or None."""


def file_sinks(
    resid: Float[Tensor, "batch query d_model"],
    context: TapContext,
    key: SinkKey,
    visual: Bool[Tensor, "batch position"],
    real: Bool[Tensor, "batch position"],
) -> Bool[Tensor, "batch query"]:
    """Find the sinks among these rows of `resid_pre`, add them to those of earlier passes, and file them."""
    dims, threshold, control = key
    found = context.only_valid(sink_score(resid, dims) >= threshold)
    known = context.state.found_sinks.get((key, context.layer))
    if known is not None and known.shape[1] == context.n_seen - 1 and found.shape[1] == 1:  # one token more
        mask = torch.cat([known, found], 1)
    else:
        mask = torch.zeros(found.shape[0], context.n_seen, dtype=torch.bool, device=found.device)
        if known is not None:
            width = min(known.shape[1], context.n_seen)
            mask[:, :width] = known[:, :width]
        mask.scatter_(1, context.positions, found)
    context.state.found_sinks[key, context.layer] = mask
    if control is not None:
        mask = as_many_others(mask, visual, real, control, context.layer)
    context.state.acting_sinks[key, context.layer] = mask
    return found


def found_sinks_of(context: TapContext, key: SinkKey) -> Bool[Tensor, "batch position"]:
    """The sink tokens of this layer so far, where `sinks_of` gives their random control."""
    return context.state.found_sinks[key, context.layer]


def sinks_of(context: TapContext, key: SinkKey) -> Bool[Tensor, "batch position"]:
    """The sink tokens of this layer so far, or their random control, that `file_sinks` has filed in this run."""
    return context.state.acting_sinks[key, context.layer]


def as_many_others(
    sinks: Bool[Tensor, "batch seen"],
    visual: Bool[Tensor, "batch position"],
    real: Bool[Tensor, "batch position"],
    seed: int,
    layer: int,
) -> Bool[Tensor, "batch seen"]:
    """As many random visual tokens as there are visual sinks, and as many text tokens as text sinks: the control.

    Drawn from the prompt's tokens that are no sinks. A token's rank in the draw depends on its place from the row's
    first real token and on the seed alone, so the draw holds over decoding steps and does not depend on padding.

    Raises:
        InterventionError: a row has fewer such tokens than sinks.
    """
    n_rows, n_prompt = visual.shape
    generator = torch.Generator().manual_seed(1000 * seed + layer)
    draw = torch.rand(n_prompt, generator=generator, dtype=torch.float64)
    offset = (real.cumsum(1) - 1).clamp_min(0)
    rank = draw[offset]  # batch position
    found = torch.nn.functional.pad(sinks.cpu(), (0, max(0, n_prompt - sinks.shape[1])))
    chosen = torch.zeros(n_rows, max(n_prompt, sinks.shape[1]), dtype=torch.bool)
    for kind, name in ((visual, "visual"), (real & ~visual, "text")):
        pool = kind & ~found[:, :n_prompt]
        is_text = name == "text"
        n_sinks = (found[:, :n_prompt] & kind).sum(1) + (found[:, n_prompt:].sum(1) if is_text else 0)
        short = (pool.sum(1) < n_sinks).nonzero().flatten().tolist()
        if short:
            row = short[0]
            raise InterventionError(
                f"layer {layer} has {int(n_sinks[row])} {name} sinks in batch row {row} but only "
                f"{int(pool[row].sum())} other {name} tokens, so there is no control of the same size"
            )
        order = rank.masked_fill(~pool, 2.0).argsort(1).argsort(1)
        chosen[:, :n_prompt] |= pool & (order < n_sinks[:, None])
    return chosen[:, : sinks.shape[1]].to(sinks.device)
