"""The attention tap: the fused kernel for everything, probabilities only for the rows someone asked for.

Registered with transformers as an attention implementation. The output is what the model's own implementation gives.
Where rows of the pattern are read, their probabilities are computed beside it; where they are edited, the change is
added in its linear form, `out' = out + (a' - a) @ values`, which is exact because attention is linear in the
probabilities. So no [layer, head, query, key] tensor ever exists.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ..errors import HookError
from ..rows import Chunk

NAME = "lmm_lens"  # must not contain "flash", which makes transformers import a kernel package

Heads = tuple[int, ...] | None  # None is all


@dataclass(frozen=True)
class AttentionCall:
    """One call of a layer's attention: q and k after rotary embedding, k and v not repeated for grouped queries.

    Shapes: query [batch, head, row, d_head], key and value [batch, kv_head, key, d_head], mask [batch | 1, head | 1,
    row, key], True or 0 where visible; None is causal for more than one row and unmasked for one.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scaling: float
    is_causal: bool
    softcap: float | None
    extra_logits: Tensor | None  # [head], a learned logit that takes part in the softmax and holds no value
    position_bias: Tensor | None

    @cached_property
    def _precision(self) -> torch.dtype:
        return torch.float64 if self.query.dtype == torch.float64 else torch.float32

    @cached_property
    def _keys(self) -> Tensor:
        """Keys for the scores, cast once however many chunks of rows ask: batch kv_head d_head key."""
        return self.key.to(self._precision).transpose(-1, -2)

    @cached_property
    def _values(self) -> Tensor:
        return self.value.to(self._precision)

    def probabilities(self, rows: Chunk, heads: Heads = None) -> Float[Tensor, "batch head row key"]:
        """Attention probabilities of some rows and heads, in fp32 (fp64 in a double model)."""
        logits = self.scores(rows, heads)
        if self.extra_logits is None:
            return logits.softmax(-1)
        extra = _of_heads(self.extra_logits.to(logits.dtype).reshape(1, -1, 1, 1), heads)
        return torch.cat([logits, extra.expand(*logits.shape[:-1], 1)], -1).softmax(-1)[..., :-1]

    def scores(self, rows: Chunk, heads: Heads = None) -> Float[Tensor, "batch head row key"]:
        """Attention scores of some rows and heads before the softmax, hidden keys at the lowest number."""
        query = _of_heads(rows.gather(self.query, dim=2), heads).to(self._precision) * self.scaling
        logits = self._grouped(query, self._keys, heads)
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

    def read_values(self, weights: Tensor, heads: Heads = None) -> Float[Tensor, "batch row head d_head"]:
        """What attention weights, or a change of them, [batch, head, row, key], read from the values."""
        return self._grouped(weights, self._values, heads).transpose(1, 2)

    def _grouped(self, x: Tensor, shared: Tensor, heads: Heads) -> Tensor:
        """`x @ shared` a head, x [batch, head, row, n] of the chosen heads, shared [batch, kv_head, n, m]."""
        if heads is not None:
            group = self.query.shape[1] // shared.shape[1]
            return x @ shared[:, [head // group for head in heads]]
        batch, n_heads, n_rows, n = x.shape
        return (x.reshape(batch, shared.shape[1], -1, n) @ shared).reshape(batch, n_heads, n_rows, -1)

    def _rows_of(self, mask: Tensor, rows: Chunk, heads: Heads) -> Tensor:
        """The chosen rows and heads of a mask or bias whose batch and head dimensions may be 1."""
        full = mask.expand(self.query.shape[0], -1, self.query.shape[2], -1)
        chosen = rows.gather(full, dim=2)[..., : self.key.shape[2]]
        return chosen if chosen.shape[1] == 1 else _of_heads(chosen, heads)


class FusedAttention:
    """One layer's attention beside the output of its kernel; edits of the pattern reach that output.

    Args:
        call: what the kernel was given.
        out: what it returned, [batch, row, head, d_head].
    """

    def __init__(self, call: AttentionCall, out: Tensor) -> None:
        self.call, self.out = call, out
        self.shape = (*call.query.shape[:3], call.key.shape[2])
        self.device = out.device
        self.probabilities, self.scores = call.probabilities, call.scores
        # the kernel saved its own output for a backward pass; else it is ours to change
        self._is_ours = not (torch.is_grad_enabled() and out.requires_grad)

    def put(self, pattern: Tensor, original: Tensor, rows: Chunk, heads: Heads) -> None:
        """Add what the change of the weights reads from the values, summed in its precision and rounded once."""
        if not self._is_ours:
            self.out, self._is_ours = self.out.clone(), True
        change = self.call.read_values(pattern - original, heads)
        total = rows.gather(self.out).to(change.dtype)
        if heads is None:
            total = total + change
        else:
            total = total.clone()
            total[:, :, list(heads)] += change
        rows.scatter_(self.out, total.to(self.out.dtype))


def _of_heads(x: Tensor, heads: Heads) -> Tensor:
    return x if heads is None else x[:, list(heads)]


class Listener(Protocol):
    """Who wants to see attention calls: an open session of the native backend."""

    thread: int | None

    def owns(self, module: nn.Module) -> bool:
        """Whether the module belongs to the listener's model."""

    def attend(self, module: nn.Module, call: AttentionCall, out: Tensor) -> Tensor:
        """Read the call, and return its output [batch, row, head, d_head], edited or as it is."""


LISTENERS: list[Listener] = []


def listener_of(module: nn.Module) -> Listener | None:
    """The innermost listener of this thread for a module, or else of no thread in particular.

    A run belongs to its thread; what `Lens.apply` opens holds for every thread, since `generate` is often called from
    one of its own. Only the innermost acts, so two lenses on one model do not disturb each other.
    """
    own = threading.get_ident()
    mine = [listener for listener in LISTENERS if listener.thread in (None, own) and listener.owns(module)]
    return mine[-1] if mine else None


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "batch row head d_head"], None]:
    """The function that transformers calls in each attention layer while a pattern is tapped."""
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    arguments = (query, key, value, attention_mask)
    out = _plain(module, *arguments, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs)
    listener = listener_of(module)
    if listener is None:
        return out, None
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    special = kwargs.get("softcap"), kwargs.get("s_aux"), kwargs.get("position_bias")
    return listener.attend(module, AttentionCall(*arguments, scaling, causal, *special), out), None


def _plain(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> Tensor:
    """The attention that the user's model would have computed.

    A model loaded with eager attention, or one that only has it (soft-capped logits), goes through its own eager
    function, so that without an intervention nothing changes, to the last bit; all others through the fused kernel.
    """
    switch = _SWITCHES.get(id(getattr(module, "config", None)))
    needs_eager = kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None
    if not needs_eager and (switch is None or switch.original != "eager"):
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)[0]
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if eager is None:
        raise HookError(
            f"{type(module).__name__} has no eager attention function to compute its soft-capped logits with"
        )
    if mask is None and query.shape[2] > 1 and getattr(module, "is_causal", True):
        n_rows, n_keys = query.shape[2], key.shape[2]
        mask = torch.ones(n_rows, n_keys, dtype=torch.bool, device=query.device).tril()[None, None]
    if mask is not None and mask.dtype == torch.bool:
        hide = torch.finfo(query.dtype).min
        mask = torch.zeros(mask.shape, dtype=query.dtype, device=mask.device).masked_fill(~mask, hide)
    kwargs.pop("is_causal")
    return eager(module, query, key, value, mask, **kwargs)[0]


@dataclass
class _Switch:
    config: Any
    original: str
    users: int


_SWITCHES: dict[int, _Switch] = {}
_LOCK = threading.Lock()


@contextmanager
def switched(configs: Iterable[Any]) -> Iterator[None]:
    """Route the attention of these text configs through `attention`, and put their own back at the end.

    Counted, so that sessions may overlap in any order.
    """
    chosen = {id(config): config for config in configs}
    with _LOCK:
        for key, config in chosen.items():
            switch = _SWITCHES.setdefault(key, _Switch(config, config._attn_implementation, 0))
            switch.users += 1
            # not through the property, which would reach into sub-configs and could not be undone exactly
            config._attn_implementation_internal = NAME
    try:
        yield
    finally:
        with _LOCK:
            for key, config in chosen.items():
                switch = _SWITCHES[key]
                switch.users -= 1
                if not switch.users:
                    config._attn_implementation_internal = switch.original
                    del _SWITCHES[key]


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
