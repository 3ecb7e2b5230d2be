"""Attention of many copies of some rows over keys that they share and keys of their own.

Each part is a softmax of its own, kept with the logarithm of its sum of exponentials; the two are merged by these, as
in FlashAttention's split over keys (Dao et al., arXiv:2205.14135). So the recorded keys are read once for all copies
and never copied.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Mask = Tensor | None  # [1 | head, row, key], or one a copy, [copy, 1 | head, row, key]; True or 0 where visible


@dataclass(frozen=True, eq=False)
class KeyBlock:
    """Keys that some rows attend to.

    Attributes:
        key, value: Float[copy | 1, kv_head, key, d_head].
        mask: over them; None where every row sees all.
    """

    key: Tensor
    value: Tensor
    mask: Mask = None


def merged_attention(
    query: Float[Tensor, "copy head query d_head"],
    parts: list[KeyBlock],
    scaling: float,
    softcap: float | None = None,
    extra: Float[Tensor, " head"] | None = None,
) -> Float[Tensor, "copy query head d_head"]:
    """Softmax attention over the keys of all parts together.

    Args:
        query: after rotary embedding.
        parts: shared ones have one copy.
        scaling: of the scores.
        softcap: of the scores.
        extra: a learned logit a head that takes part in the softmax and holds no value.
    """
    precision = torch.float64 if query.dtype == torch.float64 else torch.float32
    asked = query.to(precision) * scaling
    outs, sums = zip(*(_part(asked, part, softcap) for part in parts), strict=True)
    logs = list(sums)
    if extra is not None:
        logs.append(extra.to(precision)[None, :, None].expand_as(logs[0]))
    total = torch.stack(logs).logsumexp(0)
    merged = sum(out * (log - total).exp_()[..., None] for out, log in zip(outs, logs, strict=False))
    assert isinstance(merged, Tensor)
    return merged.to(query.dtype).transpose(1, 2)


def _part(query: Tensor, part: KeyBlock, softcap: float | None) -> tuple[Tensor, Tensor]:
    """Attention within one part, [copy head row d_head], and the log of its sum of exponentials, [copy head row]."""
    n_copies, n_heads, n_queries, d_head = query.shape
    key, value = part.key.to(query.dtype), part.value.to(query.dtype)
    n_kv = key.shape[1]
    if len(key) == 1:  # one product for all copies: kv_head copy*group*row d_head
        asked = query.reshape(n_copies, n_kv, -1, n_queries, d_head).transpose(0, 1).reshape(1, n_kv, -1, d_head)
    else:
        asked = query.reshape(n_copies, n_kv, -1, d_head)
    scores = asked @ key.transpose(-1, -2)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if part.mask is not None:
        _hide(scores, part.mask, len(key) == 1, n_copies, n_heads, n_kv)
    largest = scores.amax(-1, keepdim=True)
    weights = scores.sub_(largest).exp_()
    sums = weights.sum(-1, keepdim=True)
    out = (weights @ value) / sums
    log = (largest + sums.log()).squeeze(-1)
    if len(key) == 1:
        out = out.reshape(n_kv, n_copies, -1, n_queries, value.shape[-1]).transpose(0, 1).flatten(1, 2)
        log = log.reshape(n_kv, n_copies, -1, n_queries).transpose(0, 1).flatten(1, 2)
        return out, log
    return out.reshape(n_copies, n_heads, n_queries, -1), log.reshape(n_copies, n_heads, n_queries)


def _hide(scores: Tensor, mask: Tensor, shared: bool, n_copies: int, n_heads: int, n_kv: int) -> None:
    """Put the scores of hidden keys to the lowest number, in place."""
    n_queries, n_keys = mask.shape[-2:]
    group = n_heads // n_kv
    by_copy = mask if mask.ndim == 4 else mask[None]
    by_head = by_copy.expand(-1, n_heads, n_queries, n_keys).reshape(-1, n_kv, group, n_queries, n_keys)
    shape = (n_kv, n_copies, group, n_queries, n_keys) if shared else (n_copies, n_kv, group, n_queries, n_keys)
    view, wide = scores.view(shape), by_head.transpose(0, 1) if shared else by_head
    if mask.dtype == torch.bool:
        view.masked_fill_(~wide, torch.finfo(scores.dtype).min)
    else:
        view.add_(wide.to(scores.dtype)).clamp_(min=torch.finfo(scores.dtype).min)


def causal(n_queries: int, n_keys: int, device: torch.device) -> Bool[Tensor, "1 query key"]:
    """The last `n_queries` of `n_keys` rows, each seeing itself and those before."""
    rows = torch.arange(n_keys - n_queries, n_keys, device=device)
    return (torch.arange(n_keys, device=device) <= rows[:, None])[None]
