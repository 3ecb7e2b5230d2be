"""The sink tokens of each layer, found anew in every pass and left in the run for edits and scores of the pattern."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import InterventionError
from .columns import Grown
from .kernels import KeyWeights, groups_of, is_sink, var_weights
from .taps import TapContext

SINKS = 2  # the place of sinks in `groups_of`
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
    found = context.only_valid(is_sink(resid, dims, threshold))
    known = context.state.found_sinks.get((key, context.layer))
    if known is not None and known.length == context.n_seen - 1 and found.shape[1] == 1:  # one token more
        known.add(found)
        grown = known
    elif known is None and context.all_valid and found.shape[1] == context.n_seen:  # all there is
        grown = Grown(found)
    else:
        mask = torch.zeros(found.shape[0], context.n_seen, dtype=torch.bool, device=found.device)
        if known is not None:
            width = min(known.length, context.n_seen)
            mask[:, :width] = known.mask[:, :width]
        mask.scatter_(1, context.positions, found)
        grown = Grown(mask)
    context.state.found_sinks[key, context.layer] = grown
    if control is not None:
        grown = Grown(as_many_others(grown.mask, visual, real, control, context.layer))
    context.state.acting_sinks[key, context.layer] = grown
    return found


def sink_groups(
    context: TapContext, key: SinkKey, visual: Bool[Tensor, "batch position"], n_keys: int, dtype: torch.dtype
) -> KeyWeights:
    """The keys that the layer holds by what VAR does with them, see `lmm_lens.core.kernels.groups_of`.

    Where a token was generated, what there was before is grown by its column, which is no visual one.
    """
    n_seen, at = context.n_seen, (key, context.layer, dtype)
    sinks = context.state.found_sinks[key, context.layer]  # not their random control
    n_before, buffer, source = context.state.sink_groups.get(at, (-1, visual, sinks))
    is_whole = n_keys == n_seen and not torch.is_grad_enabled()  # a graph would keep what is written over
    newest = sinks.newest
    if is_whole and n_before == n_seen and source is sinks:  # made for other rows of this layer
        return var_weights(buffer.narrow(2, 0, n_keys))
    if is_whole and n_before == n_seen - 1 == sinks.length - newest.shape[1] and visual.shape[1] <= n_before:
        if buffer.shape[2] < n_seen:
            buffer = torch.nn.functional.pad(buffer, (0, n_seen))
        buffer[:, SINKS, n_before : n_before + newest.shape[1]].copy_(newest)  # layers may lie on several devices
    else:
        buffer = groups_of(context.columns(visual, n_keys), context.columns(sinks.mask, n_keys), dtype)
    if is_whole:
        context.state.sink_groups[at] = n_seen, buffer, sinks
    return var_weights(buffer.narrow(2, 0, n_keys))


def givers_of(
    context: TapContext, key: SinkKey, visual: Bool[Tensor, "batch position"], n_keys: int, dtype: torch.dtype
) -> KeyWeights:
    """The same with the random control of the sinks in their place."""
    givers = context.columns(sinks_of(context, key), n_keys)
    return var_weights(groups_of(context.columns(visual, n_keys), givers, dtype))


def sinks_of(context: TapContext, key: SinkKey) -> Bool[Tensor, "batch position"]:
    """The sink tokens of this layer so far, or their random control, that `file_sinks` has filed in this run."""
    return context.state.acting_sinks[key, context.layer].mask


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
