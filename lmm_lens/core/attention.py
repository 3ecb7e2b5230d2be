"""One layer's attention as its kernel saw it, and edits of the pattern without the kernel.

Where rows of the pattern are read, their probabilities are computed beside the kernel; where they are edited, the
change is added in its linear form, `out' = out + (a' - a) @ values`, which is exact because attention is linear in the
probabilities. So no [layer, head, query, key] tensor ever exists.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .kernels import ZERO, constant
from .rows import Chunk, follow, of_heads
from .taps import HIDDEN

Heads = tuple[int, ...] | None  # None is all


class AttentionCall:
    """One call of a layer's attention: q and k after rotary embedding, k and v not repeated for grouped queries.

    Args:
        query: Float[batch, head, query, d_head].
        key, value: Float[batch, kv_head, key, d_head].
        mask: [batch | 1, head | 1, query, key], True or 0 where visible; None is causal for more than one row and
            unmasked for one.
        scaling: of the scores.
        is_causal: whether the absence of a mask means causal.
        softcap: of the scores, if any.
        extra_logits: a logit that takes part in the softmax and holds no value: learned, [head], or of each query,
            [batch, head, query, 1].
        position_bias: added to the scores.
    """

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scaling: float,
        is_causal: bool,
        softcap: float | None = None,
        extra_logits: Tensor | None = None,
        position_bias: Tensor | None = None,
    ) -> None:
        self.query, self.key, self.value, self.mask = query, key, value, mask
        self.scaling, self.is_causal, self.softcap = scaling, is_causal, softcap
        self.extra_logits, self.position_bias = extra_logits, position_bias
        self._precision = torch.float64 if query.dtype == torch.float64 else torch.float32
        self._cast: dict[str, Tensor] = {}

    @property
    def takes_a_mask(self) -> bool:
        """Whether hiding keys from its kernel is the masked softmax, and costs it no more than a mask.

        With grouped queries transformers repeats keys and values for a kernel that gets a mask.
        """
        if self.extra_logits is not None:  # which would get a share of what is taken
            return False
        if self.mask is None:
            return self.query.shape[1] == self.key.shape[1]
        return self.mask.dtype == torch.bool and self.mask.shape[1:] == (1, 1, self.key.shape[2])

    def detached(self) -> AttentionCall:
        """The same without a graph."""
        query, key, value = self.query.detach(), self.key.detach(), self.value.detach()
        rest = self.mask, self.scaling, self.is_causal, self.softcap, self.extra_logits, self.position_bias
        return AttentionCall(query, key, value, *rest)

    def _exact(self, x: Tensor) -> Tensor:
        return x if x.dtype == self._precision else x.to(self._precision)

    def _keys(self) -> Tensor:
        """Keys for the scores, cast once however many chunks of rows ask: batch kv_head d_head key."""
        if "keys" not in self._cast:
            self._cast["keys"] = self._exact(self.key).transpose(-1, -2)
        return self._cast["keys"]

    def _values(self) -> Tensor:
        if "values" not in self._cast:
            self._cast["values"] = self._exact(self.value)
        return self._cast["values"]

    def probabilities(self, rows: Chunk, heads: Heads = None) -> Float[Tensor, "batch head query key"]:
        """Attention probabilities of some rows and heads, in fp32 (fp64 in a double model)."""
        logits = self.scores(rows, heads)
        if self.extra_logits is None:
            return logits.softmax(-1)
        extra = self.extra_logits.to(logits.dtype)
        by_query = extra.ndim == 4
        extra = self._rows_of(extra, rows, heads) if by_query else of_heads(extra.reshape(1, -1, 1, 1), heads)
        return torch.cat([logits, extra.expand(*logits.shape[:-1], 1)], -1).softmax(-1)[..., :-1]

    def scores(self, rows: Chunk, heads: Heads = None) -> Float[Tensor, "batch head query key"]:
        """Attention scores of some rows and heads before the softmax, hidden keys at the lowest number."""
        query = self._exact(of_heads(rows.gather(self.query, dim=2), heads))
        logits = self._grouped(query, self._keys(), heads, self.scaling)
        if self.position_bias is not None:
            logits = logits + self._rows_of(self.position_bias, rows, heads)
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        if self.mask is not None:
            mask = self._rows_of(self.mask, rows, heads)
            hide = torch.finfo(logits.dtype).min
            logits = logits.masked_fill_(~mask, hide) if mask.dtype == torch.bool else logits + mask
        elif self.query.shape[2] > 1 and self.is_causal:  # top-left aligned, as in sdpa
            future = rows.index[:, None, :, None] < torch.arange(logits.shape[-1], device=logits.device)
            logits = logits.masked_fill_(future, torch.finfo(logits.dtype).min)
        return logits

    def visible(self, rows: Chunk, heads: Heads = None) -> Bool[Tensor, "batch head query key"]:
        """Which keys some rows can see."""
        return self.scores(rows, heads) > HIDDEN

    def read_values(self, weights: Tensor, heads: Heads = None) -> Float[Tensor, "batch query head d_head"]:
        """What attention weights, or a change of them, [batch, head, query, key], read from the values."""
        return self._grouped(weights, self._values(), heads).transpose(1, 2)

    def add_in_step(self, change: Float[Tensor, "batch head query key"], out: Tensor) -> bool:
        """Add what a change of all heads' only row reads to out [batch, 1, head, d_head], in place and in one product.

        Returns:
            Whether it was; not for several rows, nor where the sum is not one of the same precision.
        """
        if out.shape[1] != 1 or out.dtype != change.dtype or not out.is_contiguous():
            return False
        flat = self._values().flatten(0, 1)
        out.view(len(flat), -1, flat.shape[2]).baddbmm_(change.reshape(len(flat), -1, flat.shape[1]), flat)
        return True

    def _grouped(self, x: Tensor, shared: Tensor, heads: Heads, alpha: float = 1.0) -> Tensor:
        """`alpha x @ shared` a head, x [batch, head, query, n] of the chosen heads, shared [batch, kv_head, n, m]."""
        batch, n_heads, n_queries, n = x.shape
        if heads is not None:
            group = self.query.shape[1] // shared.shape[1]
            is_part = group == 1 and follow(heads)
            shared = of_heads(shared, heads) if is_part else shared[:, [head // group for head in heads]]
        n_shared = batch * shared.shape[1]
        # one product of three dimensions: a step feels what @ does to make them of four
        product = torch.baddbmm(
            constant(ZERO, x), x.reshape(n_shared, -1, n), shared.flatten(0, 1), beta=0, alpha=alpha
        )
        return product.view(batch, n_heads, n_queries, -1)

    def _rows_of(self, mask: Tensor, rows: Chunk, heads: Heads) -> Tensor:
        """The chosen rows and heads of a mask or bias whose batch and head dimensions may be 1."""
        full = mask.expand(self.query.shape[0], -1, self.query.shape[2], -1)
        chosen = rows.gather(full, dim=2)[..., : self.key.shape[2]]
        return chosen if chosen.shape[1] == 1 else of_heads(chosen, heads)


def dense_mask(mask: Any, n_queries: int, n_keys: int) -> Tensor | None:
    """A mask as tensors are masked: [batch | 1, head | 1, query, key]; None where there is none.

    Args:
        mask: what an attention function is given: such a tensor, None, [batch, key] of real tokens as flash attention
            takes it, or a BlockMask of flex attention.
        n_queries, n_keys: of the pass.
    """
    if mask is None or isinstance(mask, Tensor):
        if mask is None or mask.ndim == 4:
            return mask
        real = mask[:, None, None, -n_keys:] != 0
        return real & torch.ones(n_queries, n_keys, dtype=torch.bool, device=mask.device).tril(n_keys - n_queries)
    from torch.nn.attention.flex_attention import create_mask

    batch, heads, _, _ = mask.shape
    return create_mask(mask.mask_mod, batch, heads, n_queries, n_keys, device=mask.kv_num_blocks.device)


def extra_logits(options: Mapping[str, Any]) -> Tensor | None:
    """A logit of each head, or of each query, that takes part in the softmax and holds no value, by its two names."""
    return options.get("s_aux") if options.get("s_aux") is not None else options.get("sinks")


class FusedAttention:
    """One layer's attention beside the output of its kernel; edits of the pattern reach that output.

    Args:
        call: what the kernel was given.
        out: what it returned, [batch, query, head, d_head].
    """

    def __init__(self, call: AttentionCall, out: Tensor) -> None:
        self.call, self.out = call, out
        self.shape = (*call.query.shape[:3], call.key.shape[2])
        self.device = out.device
        self.probabilities, self.scores, self.visible = call.probabilities, call.scores, call.visible
        self.read_values = call.read_values
        # the kernel saved its own output for a backward pass; else it is ours to change
        self._is_ours = not (torch.is_grad_enabled() and out.requires_grad)

    def put(self, pattern: Tensor, original: Tensor, rows: Chunk, heads: Heads) -> None:
        """Add what the change of the weights reads from the values, summed in its precision and rounded once."""
        self.add(pattern - original, rows, heads)

    def add(self, change: Tensor, rows: Chunk, heads: Heads) -> None:
        """The same, of a change."""
        if not self._is_ours:
            self.out, self._is_ours = self.out.clone(), True
        if heads is None and rows.window is not None and self.call.add_in_step(change, self.out):
            return
        read = self.call.read_values(change, heads)
        part = of_heads(rows.gather(self.out), heads, dim=2)
        if rows.is_part(heads):
            part.add_(read)  # in the wider of both
        else:
            rows.put(self.out, (part + read).to(self.out.dtype), heads)
