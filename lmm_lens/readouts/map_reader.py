"""Attention from some queries to every key of the prompt, added up where the model is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.rows import Rows
from ..core.sinks import sinks_of
from ..core.taps import Tap, TapContext
from ..hooks.points import ModelShape
from ..prompts.prompt import Prompt
from ..sinks.rule import SinkRule

WEIGHTS, ON_SINKS = "attention map", "attention map on sinks"


@dataclass(frozen=True, eq=False)
class MapReader:
    """Adds up the attention of groups of query rows, by head; nothing of the pattern is kept.

    Attributes:
        heads: of each layer.
        shares: Float[group, position], by how much a query counts in a group, generated positions included.
        rows: the queries.
        row: of the batch.
        rule: sinks to leave out, if any.
    """

    heads: Mapping[int, Sequence[int]]
    shares: Float[Tensor, "group position"]
    rows: Rows
    row: int
    rule: SinkRule | None = None

    def taps(self, prompt: Prompt, shape: ModelShape) -> list[Tap]:
        """A read of the pattern in each layer, and of its sinks before it."""
        row, shares, n_prompt = self.row, self.shares, prompt.n_tokens
        key = self.rule.key if self.rule else None

        def add_up(pattern: Tensor, context: TapContext) -> Tensor:
            n_keys, device = pattern.shape[-1], pattern.device
            share = shares.to(device, pattern.dtype)[:, context.positions[row].clamp(max=shares.shape[1] - 1)]
            share = share * context.valid[row]
            total = torch.einsum("gq,hqk->ghk", share, pattern[row])
            if key is not None:
                sink = context.columns(sinks_of(context, key), n_keys)[row]
                context.add(ON_SINKS, (total * sink).sum(-1))
                total = total.masked_fill(sink, 0)
            before = max(0, context.n_seen - n_keys)  # sliding windows hold the last keys alone
            whole = torch.nn.functional.pad(total, (before, max(0, n_prompt - before - n_keys)))
            context.add(WEIGHTS, whole[..., :n_prompt])
            return pattern[..., :0]  # everything is in the sums

        taps = [Tap("pattern", layer, self.rows, add_up, tuple(heads)) for layer, heads in self.heads.items()]
        return taps + [self.rule.tap(prompt, layer) for layer in self.heads if self.rule]
