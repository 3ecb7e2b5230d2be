"""Scores as one would compute them without this library: eager attention, every weight kept, loops over keys.

The model is copied and run with transformers' own eager attention; plain hooks keep the weights that each attention
module returns and the residual stream that enters each layer.
"""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Heads = Iterable[tuple[int, int]]


@dataclass
class Pass:
    """What one forward showed: by layer, weights [batch, head, query, key] and residuals [batch, query, d_model]."""

    n_seen: int
    weights: dict[int, Tensor] = field(default_factory=dict)
    resid: dict[int, Tensor] = field(default_factory=dict)

    def row(self, layer: int, batch: int, head: int, row: int) -> list[float]:
        """One row's weights by absolute position; a sliding window has dropped the first keys."""
        weights = self.weights[layer][batch, head, row].tolist()
        return [0.0] * (self.n_seen - len(weights)) + weights


class Eager:
    """A copy of a model that keeps everything, heads deleted by their columns of the output projection."""

    def __init__(self, model: nn.Module, ablated: Heads = ()) -> None:
        self.model = copy.deepcopy(model).eval()
        self.model.set_attn_implementation("eager")
        self.layers = self.model.get_decoder().layers
        self.passes: list[Pass] = []
        for index, layer in enumerate(self.layers):
            layer.register_forward_pre_hook(self._entering(index), with_kwargs=True)
            if (attention := self.attention(index)) is not None:
                attention.register_forward_hook(self._attending(index))
        for layer, head in ablated:
            projection, size = self.attention(layer).o_proj, self.attention(layer).head_dim
            with torch.no_grad():
                projection.weight[:, head * size : (head + 1) * size] = 0

    def attention(self, layer: int) -> Any:
        return getattr(self.layers[layer], "self_attn", None)

    def _entering(self, layer: int) -> Any:
        def keep(module: nn.Module, args: tuple, kwargs: dict) -> None:
            x = args[0] if args else kwargs["hidden_states"]
            if layer == 0:
                seen = self.passes[-1].n_seen if self.passes else 0
                self.passes.append(Pass(seen + x.shape[1]))
            self.passes[-1].resid[layer] = x.detach().clone()

        return keep

    def _attending(self, layer: int) -> Any:
        def keep(module: nn.Module, args: tuple, output: tuple) -> None:
            self.passes[-1].weights[layer] = output[1].detach().clone()

        return keep

    def prefill(self, inputs: Mapping[str, Any]) -> Pass:
        self.passes = []
        with torch.no_grad():
            self.logits = self.model(**inputs, use_cache=False).logits
        return self.passes[0]

    def decode(self, inputs: Mapping[str, Any]) -> tuple[Pass, Pass]:
        """The prefill, and the pass of the first generated token, with the cache."""
        self.passes = []
        options = {"max_new_tokens": 2, "do_sample": False, "eos_token_id": []}
        with torch.no_grad():
            self.model.generate(**inputs, **options)
        return self.passes[0], self.passes[1]

    def again_with_answer(self, inputs: Mapping[str, Any]) -> tuple[Pass, Pass]:
        """The prefill, and the whole prompt once more with its greedy token after it, without a cache."""
        first = self.prefill(inputs)
        token = self.logits[:, -1].argmax(-1, keepdim=True)
        longer = dict(inputs, input_ids=torch.cat([inputs["input_ids"], token], 1))
        for name, value in (("attention_mask", 1), ("mm_token_type_ids", 0), ("token_type_ids", 0)):
            if name in inputs:
                longer[name] = torch.cat([inputs[name], torch.full_like(inputs[name][:, :1], value)], 1)
        return first, self.prefill(longer)


@dataclass(frozen=True)
class Keys:
    """The keys of one prompt row by their role, as lists of positions."""

    visual: Sequence[int]
    sinks: Mapping[int, Sequence[int]] = field(default_factory=dict)  # by layer
    region: Sequence[int] = ()


def slow_score(metric: str, weights: Sequence[float], keys: Keys, layer: int) -> float:
    """One head's score, straight from the definition."""
    mass = sum(weights[j] for j in keys.visual)
    if metric == "visual_mass":
        return mass
    if metric == "nonsink_mass":
        return sum(weights[j] for j in keys.visual if j not in keys.sinks[layer])
    if metric == "region_mass":
        return sum(weights[j] for j in keys.region)
    concentration = 0.0  # nothing to be concentrated
    if mass > 0:
        shares = [weights[j] / mass for j in keys.visual if weights[j] > 0]
        concentration = 1 + sum(p * math.log(p) for p in shares) / math.log(len(keys.visual))
    return {"concentration": concentration, "visual_preference": mass * concentration}[metric]


def phi(x: Tensor, dims: Sequence[int]) -> float:
    """The sink score of one token, in double precision."""
    values = x.double().tolist()
    rms = math.sqrt(sum(v * v for v in values) / len(values) + 1e-6)
    return max(abs(values[d]) for d in dims) / rms


def sinks_by_layer(prefill: Pass, batch: int, dims: Sequence[int], threshold: float) -> dict[int, list[int]]:
    """Which tokens of a prompt row are sinks of each layer."""
    return {
        layer: [j for j, x in enumerate(resid[batch]) if phi(x, dims) >= threshold]
        for layer, resid in prefill.resid.items()
    }


def scores(metric: str, seen: Pass, row: int, keys: Keys, batch: int = 0) -> Tensor:
    """[layer, head] of one prompt row at one query row of a pass; NaN in layers without attention."""
    n_layers = len(seen.resid)
    n_heads = next(iter(seen.weights.values())).shape[1]
    table = torch.full((n_layers, n_heads), torch.nan)
    for layer in seen.weights:
        for head in range(n_heads):
            table[layer, head] = slow_score(metric, seen.row(layer, batch, head, row), keys, layer)
    return table
