"""Hand the activations that nnsight serves to taps: runs inside a trace, here or on a server.

A *part* is a dict of one layer's envoys and of numbers about it, made by `lmm_lens.backends.nnsight.wrap.parts_of`:

    layer, n_heads, d_head     numbers
    module, attention, z, mlp  envoys: the layer, its attention, its output projection, its feed-forward
    call                       label of the operation of the attention's forward that calls the attention function
    values                     label of the operation that gives keys and values, (key, value)
    scaling, is_causal         of the call, where it does not say
    from_weights               read the eager weights that the call returns, not the queries and keys it is given
    is_cross                   whether the keys are not the sequence's
    keeps                      let the call return the weights as edited, for blocks that read them afterwards

`from_weights` is for servers where the arguments of a call are out of reach: NDIF runs the block in a process of its
own, and would send the whole attention module along with them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import HookError, InterventionError
from .attention import AttentionCall, FusedAttention
from .rows import Chunk
from .tapping import Tapping

AGREES = 0.05  # of the largest output: how far the recomputed attention of a row may lie from the kernel's in bf16


class WeightedAttention:
    """One layer's attention as its weights [batch, head, query, key] and values; edits reach weights and output.

    Args:
        weights: what the attention function returned beside its output.
        value: Float[batch, kv_head, key, d_head].
        out: its output, [batch, query, head, d_head].
        call: what it was given, where that is known.
    """

    def __init__(self, weights: Tensor, value: Tensor, out: Tensor, call: AttentionCall | None = None) -> None:
        self.weights, self.value, self.out, self.call = weights, value, out, call
        self.shape = tuple(weights.shape)
        self.device = out.device
        self.is_edited = False

    def probabilities(self, rows: Chunk, heads: tuple[int, ...] | None) -> Tensor:
        """Attention probabilities of some rows and heads."""
        chosen = rows.gather(self.weights, dim=2)
        chosen = chosen if heads is None else chosen[:, list(heads)]
        return chosen.to(torch.promote_types(chosen.dtype, torch.float32))

    def scores(self, rows: Chunk, heads: tuple[int, ...] | None) -> Tensor:
        """The same before the softmax."""
        if self.call is None:
            raise InterventionError(
                "the attention scores before the softmax are out of reach on a server, which gives weights alone\n"
                "  what needs them, as BoostAttention does, runs on a lens with remote=False"
            )
        return self.call.scores(rows, heads)

    def visible(self, rows: Chunk, heads: tuple[int, ...] | None) -> Tensor:
        """Which keys some rows can see: in fp16, where the call is not known, those with a weight above 6e-8."""
        return self.probabilities(rows, heads) > 0 if self.call is None else self.call.visible(rows, heads)

    def read_values(self, weights: Tensor, heads: tuple[int, ...] | None) -> Tensor:
        """What attention weights [batch, head, query, key] read from the values, [batch, query, head, d_head]."""
        n_heads = self.weights.shape[1]
        group = n_heads // self.value.shape[1]
        shared = [head // group for head in (range(n_heads) if heads is None else heads)]
        return (weights @ self.value[:, shared].to(weights.dtype)).transpose(1, 2)

    def put(self, pattern: Tensor, original: Tensor, rows: Chunk, heads: tuple[int, ...] | None) -> None:
        """Put edited rows in the place of the original ones, and what the change reads into the output."""
        if not self.is_edited:
            self.out, self.weights, self.is_edited = self.out.clone(), self.weights.clone(), True
        by_row = self.weights.transpose(1, 2)  # batch query head key, a view
        chosen, total = rows.gather(by_row).clone(), rows.gather(self.out).to(pattern.dtype).clone()
        at = slice(None) if heads is None else list(heads)
        chosen[:, :, at] = pattern.transpose(1, 2).to(chosen.dtype)
        total[:, :, at] += self.read_values(pattern - original, heads)
        rows.scatter_(by_row, chosen)
        rows.scatter_(self.out, total.to(self.out.dtype))


def attention_of(part: dict[str, Any], values: dict[int, Tensor]) -> tuple[Any, Any, Tensor | None]:
    """A layer's attention under way: to be read and edited, the operation, and the weights it returned, if any.

    Args:
        part: the layer.
        values: those of cross-attention layers, which compute them once and not again while generating.
    """
    operations = part["attention"].source
    operation = getattr(operations, part["call"])
    if part["from_weights"]:
        value = values.get(part["layer"])
        if value is None:
            value = getattr(operations, part["values"]).output[1]
        if part["is_cross"]:
            values[part["layer"]] = value
        out, weights = operation.output[:2]
        if weights is None:
            raise HookError(
                f"layer {part['layer']} returned no attention weights: the model does not run eager attention\n"
                "  the server must let a request choose attn_implementation='eager'"
            )
        weighted = WeightedAttention(weights, value, out)
        check_rows(part["layer"], weighted, out, weights.shape[2])
        return weighted, operation, weights
    call = call_of(part, operation)
    out, weights = operation.output[:2]
    if not part["keeps"]:
        check_rows(part["layer"], call, out, call.query.shape[2])
        return FusedAttention(call, out), operation, weights
    if weights is None:
        weights = call.probabilities(all_rows(out.shape[0], out.shape[1], out.device))
    weighted = WeightedAttention(weights, call.value, out, call)
    check_rows(part["layer"], weighted, out, weights.shape[2])
    return weighted, operation, weights


def all_rows(batch: int, n_queries: int, device: torch.device) -> Chunk:
    """All rows of a pass."""
    index = torch.arange(n_queries, device=device).expand(batch, n_queries)
    return Chunk(index, torch.ones_like(index, dtype=torch.bool), batch * n_queries, 0, slice(0, n_queries))


def call_of(part: dict[str, Any], operation: Any) -> AttentionCall:
    """What a layer's attention function is given."""
    given, options = operation.inputs
    query, key, value, mask = given[1:5]
    scaling, is_causal = options.get("scaling"), options.get("is_causal")
    return AttentionCall(
        query,
        key,
        value,
        mask,
        part["scaling"] if scaling is None else scaling,
        part["is_causal"] if is_causal is None else is_causal,
        options.get("softcap"),
        options.get("s_aux"),
        options.get("position_bias"),
    )


def check_rows(layer: int, attention: Any, out: Tensor, n_queries: int) -> None:
    """HookError unless the last row's probabilities sum to one and give the output that the model computed."""
    last = torch.full((out.shape[0], 1), n_queries - 1, device=out.device)
    rows = Chunk(last, torch.ones_like(last, dtype=torch.bool), out.shape[0], 0, slice(n_queries - 1, n_queries))
    pattern = attention.probabilities(rows, None)
    mine, theirs = attention.read_values(pattern, None), out[:, -1:].to(pattern.dtype)
    far = (mine - theirs).abs().max() > AGREES * theirs.abs().max() + 1e-6
    sums = pattern.sum(-1)
    if bool(far) or bool((sums > 1.01).any()):
        raise HookError(
            f"the attention of layer {layer} cannot be followed: recomputed from what the model gives, its last row "
            "differs from the model's own\n  this version of transformers computes attention in another way; please "
            "report the model's class"
        )


def finish(logits: Tensor, cap: float | None, scale: float | None) -> Tensor:
    """What some models do to the output of their output embedding."""
    if scale is not None:
        logits = logits * scale
    return logits if cap is None else torch.tanh(logits / cap) * cap


def run_taps(tapping: Tapping, parts: list[dict[str, Any]], n_seen: int) -> None:
    """Pass one forward pass through its taps; with it the model has seen `n_seen` tokens."""
    tapping.fired = set()
    for part in parts:
        layer, module = part["layer"], part["module"]
        sites = [site for site, number in tapping.taps if number == layer]
        if "resid_pre" in sites:
            x = module.input
            new = through(tapping, x, "resid_pre", layer, n_seen)
            if new is not x:
                module.input = new
        if "pattern" in sites:
            seen, operation, weights = attention_of(part, tapping.values)
            before, tapping.first = seen.out, n_seen - seen.shape[2]
            tapping.attend(layer, seen)
            if seen.out is not before or any(tap.edits for tap in tapping.taps["pattern", layer]):
                operation.output = (seen.out, seen.weights if part["keeps"] or part["from_weights"] else weights)
        if "z" in sites:
            x = part["z"].input
            split = x.unflatten(-1, (part["n_heads"], part["d_head"]))
            new = through(tapping, split, "z", layer, n_seen)
            if new is not split:
                part["z"].input = new.flatten(-2)
        for site, name in (("attn_out", "attention"), ("mlp_out", "mlp"), ("resid_post", "module")):
            if site in sites:
                output = part[name].output
                x = output[0] if isinstance(output, tuple) else output
                new = through(tapping, x, site, layer, n_seen)
                if new is not x:
                    part[name].output = (new, *output[1:]) if isinstance(output, tuple) else new


def through(tapping: Tapping, x: Tensor, site: str, layer: int, n_seen: int) -> Tensor:
    """Pass an activation [batch, query, ...] through its taps; its last row is that of the last token seen."""
    tapping.first = n_seen - x.shape[1]
    return tapping.through(x, site, layer)
