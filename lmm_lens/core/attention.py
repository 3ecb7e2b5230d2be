"""One layer's attention as its kernel saw it, and edits of the pattern without the kernel.

Where rows of the pattern are read, their probabilities are computed beside the kernel; where they are edited, the
change is added in its linear form, `out' = out + (a' - a) @ values`, which is exact because attention is linear in the
probabilities. So no [layer, head, query, key] tensor ever exists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .kernels import constant
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

    Attributes:
        overhears: is told of the probabilities that somebody asks of all heads' rows; None for nobody.
    """

    overhears: Callable[[Tensor, Chunk], None] | None

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
        self.group = query.shape[1] // key.shape[1]  # query heads that share keys
        self._precision = torch.float64 if query.dtype == torch.float64 else torch.float32
        self._cast: dict[str, tuple[tuple[int, ...] | None, Tensor]] = {}  # no name of ours, which would travel along
        self.overhears = None

    @property
    def takes_a_mask(self) -> bool:
        """Whether hiding keys from its kernel is the masked softmax, and costs it no more than a mask.

        With grouped queries a kernel may get keys and values repeated where it gets a mask; that of the CPU need not.
        """
        if self.extra_logits is not None:  # which would get a share of what is taken
            return False
        if self.mask is None:
            return self.query.is_cpu or self.query.shape[1] == self.key.shape[1]
        return self.mask.dtype == torch.bool and self.mask.shape[1:] == (1, 1, self.key.shape[2])

    @property
    def takes_a_bias(self) -> bool:
        """Whether its kernel adds any numbers to the scores, in fp32 or better, and where they are 0 changes no bit.

        That of the CPU does; those of GPUs have other kernels for it.
        """
        query = self.query
        is_special = self.softcap is not None or self.position_bias is not None
        if is_special or type(query) is not Tensor or not query.is_cpu:
            return False
        return self.takes_a_mask and not (query.requires_grad and torch.is_grad_enabled())

    def detached(self) -> AttentionCall:
        """The same without a graph."""
        query, key, value = self.query.detach(), self.key.detach(), self.value.detach()
        rest = self.mask, self.scaling, self.is_causal, self.softcap, self.extra_logits, self.position_bias
        return AttentionCall(query, key, value, *rest)

    def _exact(self, x: Tensor) -> Tensor:
        return x if x.dtype == self._precision else x.to(self._precision)

    def _shared(self, name: str, heads: Heads) -> Tensor:
        """Keys or values of the chosen heads, cast once however many chunks of rows ask: batch kv_head key d_head."""
        given: Tensor = getattr(self, name)
        if heads is None and given.dtype == self._precision:
            return given
        held = self._cast.get(name)
        if held is None or held[0] != heads:
            part = self._exact(self._of_kv(given, heads))
            held = self._cast[name] = heads, part if heads is None else part.contiguous()  # read tile by tile
        return held[1]

    def _of_kv(self, shared: Tensor, heads: Heads) -> Tensor:
        """Those heads of keys or values that some query heads read, each as often as `_grouped` takes it."""
        if heads is None:
            return shared
        group = self.query.shape[1] // shared.shape[1]
        kv = [head // group for head in heads]
        if len({*kv}) == 1:
            return shared.narrow(1, kv[0], 1)
        if follow(heads) and not heads[0] % group and not len(heads) % group:
            return shared.narrow(1, kv[0], len(heads) // group)
        return shared[:, kv]

    def reach(self, rows: Chunk) -> int:
        """How many keys there are up to the last that any of these rows sees, where that is known beforehand."""
        n_queries, n_keys = self.query.shape[2], int(self.key.shape[2])
        if self.mask is None and self.is_causal and n_queries > 1 and rows.window is not None:
            return min(int(rows.window.stop), n_keys)
        return n_keys

    def probabilities(
        self, rows: Chunk, heads: Heads = None, n_keys: int | None = None
    ) -> Float[Tensor, "batch head query key"]:
        """Attention probabilities of some rows and heads, in fp32 (fp64 in a double model); see `scores`."""
        logits = self.scores(rows, heads, n_keys)
        if self.extra_logits is None:
            pattern = logits.softmax(-1)
        else:
            extra = self.extra_logits.to(logits.dtype)
            by_query = extra.ndim == 4
            extra = self._rows_of(extra, rows, heads, 1) if by_query else of_heads(extra.reshape(1, -1, 1, 1), heads)
            pattern = torch.cat([logits, extra.expand(*logits.shape[:-1], 1)], -1).softmax(-1)[..., :-1]
        if self.overhears is not None and (heads is None or heads == tuple(range(self.query.shape[1]))):
            self.overhears(pattern, rows)
        return pattern

    def scores(
        self, rows: Chunk, heads: Heads = None, n_keys: int | None = None
    ) -> Float[Tensor, "batch head query key"]:
        """Attention scores of some rows and heads before the softmax, hidden keys at the lowest number.

        Args:
            rows, heads: which.
            n_keys: so many keys from the first on, behind which these rows see nothing, see `reach`; None for all.
        """
        query, keys = self._exact(of_heads(rows.gather(self.query, dim=2), heads)), self._shared("key", heads)
        keys = keys if n_keys is None else keys.narrow(2, 0, n_keys)
        logits = _grouped(query, keys.transpose(-1, -2), self.scaling)
        if self.position_bias is not None:
            logits = logits + self._rows_of(self.position_bias, rows, heads, logits.shape[3])
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        if self.mask is not None:
            mask = self._rows_of(self.mask, rows, heads, logits.shape[3])
            if mask.dtype == torch.bool:
                return _hidden(logits, mask)
            return logits + mask
        if self.query.shape[2] > 1 and self.is_causal:  # top-left aligned, as in sdpa
            return _hidden_future(logits, rows)
        return logits

    def visible(
        self, rows: Chunk, heads: Heads = None, n_keys: int | None = None
    ) -> Bool[Tensor, "batch head query key"]:
        """Which keys some rows can see."""
        return self.scores(rows, heads, n_keys) > HIDDEN

    def read_values(self, weights: Tensor, heads: Heads = None) -> Float[Tensor, "batch query head d_head"]:
        """What attention weights, or a change of them, [batch, head, query, key], read from the values.

        Where they are of fewer keys than there are, of the first.
        """
        values = self._shared("value", heads)
        values = values if values.shape[2] == weights.shape[3] else values.narrow(2, 0, weights.shape[3])
        return _grouped(weights, values).transpose(1, 2)

    def add_in_step(self, change: Float[Tensor, "batch head query key"], out: Tensor) -> bool:
        """Add what a change of all heads' only row reads to out [batch, 1, head, d_head], in place and in one product.

        Returns:
            Whether it was; not for several rows, nor where the sum is not one of the same precision.
        """
        if out.shape[1] != 1 or out.dtype != change.dtype or not out.is_contiguous():
            return False
        flat = self._shared("value", None).flatten(0, 1)
        out.view(len(flat), -1, flat.shape[2]).baddbmm_(change.reshape(len(flat), -1, flat.shape[1]), flat)
        return True

    def _rows_of(self, mask: Tensor, rows: Chunk, heads: Heads, n_keys: int) -> Tensor:
        """The chosen rows and heads of a mask or bias whose batch and head dimensions may be 1."""
        full = mask.expand(self.query.shape[0], -1, self.query.shape[2], -1)
        chosen = rows.gather(full, dim=2)[..., :n_keys]
        return chosen if chosen.shape[1] == 1 else of_heads(chosen, heads)


def _grouped(x: Tensor, shared: Tensor, alpha: float = 1.0) -> Tensor:
    """`alpha x @ shared` a head, x [batch, head, query, n], shared [batch, kv_head, n, m]."""
    batch, n_heads, n_queries, n = x.shape
    n_shared = batch * shared.shape[1]
    # one product of three dimensions: a step feels what @ does to make them of four
    product = torch.baddbmm(constant(0.0, x), x.reshape(n_shared, -1, n), shared.flatten(0, 1), beta=0, alpha=alpha)
    return product.view(batch, n_heads, n_queries, -1)


def _hidden(logits: Tensor, seen: Tensor) -> Tensor:
    """Scores, written over, with those of keys that are not seen at the lowest number."""
    lowest = torch.finfo(logits.dtype).min
    if logits.shape[2] == 1:
        return logits.masked_fill_(~seen, lowest)
    # a sum with 0 or the lowest number, which takes a tenth of the time of filling on a CPU
    return logits.add_(seen.to(logits.dtype).sub_(1).mul_(-lowest))


def _hidden_future(logits: Tensor, rows: Chunk) -> Tensor:
    """The same of keys behind each row."""
    lowest, n_keys = torch.finfo(logits.dtype).min, logits.shape[3]
    start, stop = (0, n_keys) if rows.window is None else (rows.window.start + 1, min(rows.window.stop, n_keys))
    if start < stop:  # the first row of a window sees its own key
        logits[..., start:stop].masked_fill_(rows.behind(start, stop), lowest)
    if stop < n_keys:
        logits[..., stop:] = lowest
    return logits


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
        """The same, of a change, which may be that of the first keys alone."""
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
