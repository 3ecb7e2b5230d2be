"""Hand the activations that nnsight serves to taps: runs inside a trace, here or on a server."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import HookError, InterventionError
from .attention import AttentionCall, FusedAttention, dense_mask, extra_logits
from .flat import in_rows
from .layer_envoys import LayerEnvoys
from .rows import Chunk, of_heads
from .tapping import Tapping

AGREES = 0.05  # of the largest output: how far the recomputed attention of a row may lie from the kernel's in bf16
LEAVING = ("attn_out", "mlp_out", "resid_post")  # hook points where a module is left
NO_SCORES = (
    "the attention scores before the softmax are out of reach on a server, which gives weights alone\n"
    "  what needs them, as BoostAttention does, runs on a lens with remote=False"
)


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
        chosen = of_heads(chosen, heads)
        return chosen.to(torch.promote_types(chosen.dtype, torch.float32))

    def scores(self, rows: Chunk, heads: tuple[int, ...] | None) -> Tensor:
        """The same before the softmax."""
        if self.call is None:
            raise InterventionError(NO_SCORES)
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
        self._put(pattern, pattern - original, rows, heads)

    def add(self, change: Tensor, rows: Chunk, heads: tuple[int, ...] | None) -> None:
        """Add a change of some rows to them, and what it reads to the output."""
        self._put(self.probabilities(rows, heads) + change, change, rows, heads)

    def _put(self, pattern: Tensor, change: Tensor, rows: Chunk, heads: tuple[int, ...] | None) -> None:
        if not self.is_edited:
            self.out, self.weights, self.is_edited = self.out.clone(), self.weights.clone(), True
        by_row = self.weights.transpose(1, 2)  # batch query head key, a view
        total = of_heads(rows.gather(self.out), heads, dim=2) + self.read_values(change, heads)
        rows.put(by_row, pattern.transpose(1, 2).to(by_row.dtype), heads)
        rows.put(self.out, total.to(self.out.dtype), heads)


def attention_of(envoys: LayerEnvoys, values: dict[int, Tensor]) -> tuple[Any, Any, Tensor | None]:
    """A layer's attention under way: to be read and edited, the operation, and the weights it returned, if any.

    Args:
        envoys: of the layer.
        values: those of cross-attention layers, which compute them once and not again while generating.
    """
    operations = envoys.attention.source
    operation = getattr(operations, envoys.attention_call)
    if envoys.from_weights:
        value = values.get(envoys.layer)
        if value is None and envoys.values:
            value = getattr(operations, envoys.values).output
        if value is None:
            value = getattr(operations, envoys.cache_update).output[1]
        if envoys.is_cross:
            values[envoys.layer] = value
        out, weights = operation.output[:2]
        if weights is None:
            raise HookError(
                f"layer {envoys.layer} returned no attention weights: the model does not run eager attention\n"
                "  the server must let a request choose attn_implementation='eager'"
            )
        weighted = WeightedAttention(weights, value, out)
        check_rows(envoys.layer, weighted, out, weights.shape[2])
        return weighted, operation, weights
    call = call_of(envoys, operation)
    out, weights = operation.output[:2]
    if not envoys.keeps_weights:
        check_rows(envoys.layer, call, out, call.query.shape[2])
        return FusedAttention(call, out), operation, weights
    if weights is None:
        weights = call.probabilities(all_rows(out.shape[0], out.shape[1], out.device))
    weighted = WeightedAttention(weights, call.value, out, call)
    check_rows(envoys.layer, weighted, out, weights.shape[2])
    return weighted, operation, weights


def all_rows(batch: int, n_queries: int, device: torch.device) -> Chunk:
    """All rows of a pass."""
    index = torch.arange(n_queries, device=device).expand(batch, n_queries)
    return Chunk(index, torch.ones_like(index, dtype=torch.bool), batch * n_queries, 0, slice(0, n_queries))


def call_of(envoys: LayerEnvoys, operation: Any) -> AttentionCall:
    """What a layer's attention function is given."""
    given, options = operation.inputs
    query, key, value, mask = given[1:5]
    scaling, is_causal = options.get("scaling"), options.get("is_causal")
    return AttentionCall(
        query,
        key,
        value,
        dense_mask(mask, query.shape[2], key.shape[2]),
        envoys.scaling if scaling is None else scaling,
        envoys.is_causal if is_causal is None else is_causal,
        options.get("softcap"),
        extra_logits(options),
        options.get("position_bias"),
    )


def check_rows(layer: int, attention: Any, out: Tensor, n_queries: int) -> None:
    """HookError unless the last row's probabilities sum to one and give the output that the model computed."""
    last = torch.full((out.shape[0], 1), n_queries - 1, device=out.device)
    rows = Chunk(last, torch.ones_like(last, dtype=torch.bool), out.shape[0], 0, slice(n_queries - 1, n_queries))
    pattern = attention.probabilities(rows, None)
    mine, theirs = attention.read_values(pattern, None), out[:, -1:].to(pattern.dtype)
    differs = (mine - theirs).abs().max() > AGREES * theirs.abs().max() + 1e-6
    sums = pattern.sum(-1)
    if bool(differs) or bool((sums > 1.01).any()):
        raise HookError(
            f"the attention of layer {layer} cannot be followed: recomputed from what the model gives, its last row "
            "differs from the model's own\n  z, attn_out and the residual stream can be read and edited; for the "
            "pattern load the model with attn_implementation='sdpa' or 'eager'"
        )


def finish(logits: Tensor, cap: float | None, scale: float | None) -> Tensor:
    """What some models do to the output of their output embedding."""
    if scale is not None:
        logits = logits * scale
    return logits if cap is None else torch.tanh(logits / cap) * cap


def run_taps(tapping: Tapping, layers: list[LayerEnvoys], n_seen: int) -> None:
    """Pass one forward pass through its taps; with it the model has seen `n_seen` tokens."""
    tapping.fired = set()
    for envoys in layers:
        layer = envoys.layer
        sites = [site for site, number in tapping.taps if number == layer]
        if "resid_pre" in sites:
            x = envoys.entering()
            new = through(tapping, x, "resid_pre", layer, n_seen)
            if new is not x:
                envoys.enter(new)
        if "pattern" in sites:
            seen, operation, weights = attention_of(envoys, tapping.values)
            tapping.first = n_seen - seen.shape[2]
            attend_through(tapping, envoys, seen, operation, weights)
        if "z" in sites:
            x = envoys.output_projection.input
            split = x.unflatten(-1, (envoys.n_heads, envoys.d_head))
            new = through(tapping, split, "z", layer, n_seen)
            if new is not split:
                envoys.output_projection.input = new.flatten(-2)
        for site in LEAVING:
            if site in sites:
                envoy, output, given, x = leaving(envoys, site)
                new = through(tapping, x, site, layer, n_seen)
                if new is not x:
                    new = new.reshape(given.shape)
                    envoy.output = (new, *output[1:]) if isinstance(output, tuple) else new


def attend_through(tapping: Tapping, envoys: LayerEnvoys, seen: Any, operation: Any, weights: Tensor | None) -> None:
    """Pass what `attention_of` gave of a layer through its taps, and put back what they leave."""
    before = seen.out
    tapping.attend(envoys.layer, seen)
    if seen.out is not before or any(tap.edits for tap in tapping.taps["pattern", envoys.layer]):
        kept = envoys.keeps_weights or envoys.from_weights
        operation.output = (seen.out, seen.weights if kept else weights)


def leaving(envoys: LayerEnvoys, site: str) -> tuple[Any, Any, Tensor, Tensor]:
    """The envoy of a hook point where a module is left, its output, the activation in that, and the same in rows."""
    envoy = envoys.with_output(site)
    entered = envoy.input if site == "mlp_out" else None  # before the output, as it runs
    output = envoy.output
    given = output[0] if isinstance(output, tuple) else output
    return envoy, output, given, in_rows(given, entered)


def through(tapping: Tapping, x: Tensor, site: str, layer: int, n_seen: int) -> Tensor:
    """Pass an activation [batch, query, ...] through its taps; its last row is that of the last token seen."""
    tapping.first = n_seen - x.shape[1]
    return tapping.through(x, site, layer)
