"""The attention tap: the fused kernel for everything, probabilities only for the rows someone asked for.

Registered with transformers as an attention implementation. The output is what the model's own implementation gives;
reads and edits of the pattern happen beside it, see `lmm_lens.core.attention`.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ...core.attention import AttentionCall, dense_mask, extra_logits
from ...errors import HookError

_LOCK = threading.Lock()
NAME = "lmm_lens"  # must not contain "flash", which makes transformers import a kernel package


class Own(Protocol):
    """The model's own attention function on a call, under the mask that it was given or another."""

    def __call__(self, mask: Tensor = ..., /) -> Tensor: ...


class Listener(Protocol):
    """Who wants to see attention calls: an open session of the native backend, or a replay.

    Attributes:
        thread: whose calls; None for all.
    """

    thread: int | None

    def owns(self, module: nn.Module) -> bool:
        """Whether the module belongs to the listener's model."""

    def attend(self, module: nn.Module, call: AttentionCall, own: Own) -> Tensor:
        """The output [batch, query, head, d_head] of a call: what the model's own function gives, edited or as it is,
        or computed in another way."""


@dataclass(frozen=True, eq=False)
class Listeners:
    """Who listens now, and what has been asked since that last changed.

    Attributes:
        all: the listeners, the innermost last.
        found: whose a module is, by the thread that asked and the module's id.
    """

    all: tuple[Listener, ...] = ()
    found: dict[tuple[int, int], Listener | None] = field(default_factory=dict)


LISTENERS = Listeners()
"""Replaced as a whole, since other threads may be looking."""


def listen(listener: Listener) -> None:
    """Begin to hear of attention calls."""
    global LISTENERS
    with _LOCK:
        LISTENERS = Listeners((*LISTENERS.all, listener))


def stop_listening(listener: Listener) -> None:
    """No longer hear of them."""
    global LISTENERS
    with _LOCK:
        LISTENERS = Listeners(tuple(each for each in LISTENERS.all if each is not listener))


def listener_of(module: nn.Module) -> Listener | None:
    """The innermost listener of this thread for a module, or else of no thread in particular.

    A run belongs to its thread; what `Lens.apply` opens holds for every thread, since `generate` is often called from
    one of its own. Only the innermost acts, so two lenses on one model do not disturb each other.
    """
    listeners, own = LISTENERS, threading.get_ident()
    asked = own, id(module)
    if asked not in listeners.found:  # what a listener owns lives as long as it, so that no id passes to another
        mine = [each for each in listeners.all if each.thread in (None, own) and each.owns(module)]
        listeners.found[asked] = mine[-1] if mine else None
    return listeners.found[asked]


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
) -> tuple[Float[Tensor, "batch query head d_head"], None]:
    """The function that transformers calls in each attention layer while a pattern is tapped."""
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)

    special = kwargs.get("softcap"), extra_logits(kwargs), kwargs.get("position_bias")

    def own(mask: Tensor | None = attention_mask, /) -> Tensor:
        is_grouped = mask is not attention_mask is None and query.shape[1] != key.shape[1]
        if is_grouped and implementation(module) != "eager" and all(each is None for each in special):
            # the kernel of before, which shares keys and values; transformers has others for grouped queries and a mask
            options: dict[str, Any] = {"scale": scaling, "enable_gqa": True}
            return scaled_dot_product_attention(query, key, value, mask, **options).transpose(1, 2).contiguous()
        return _plain(module, query, key, value, mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs)

    listener = listener_of(module)
    if listener is None:
        return own(), None
    seen = dense_mask(attention_mask, query.shape[2], key.shape[2])
    call = AttentionCall(query, key, value, seen, scaling, causal, *special)
    return listener.attend(module, call, own), None


def implementation(module: nn.Module) -> str:
    """The name of the attention function that a module has when nothing is tapped."""
    return implementation_of(getattr(module, "config", None))


def implementation_of(config: Any) -> str:
    """The name of the attention function that a config chooses when nothing is tapped."""
    switch = _SWITCHES.get(id(config))
    return switch.original if switch is not None else str(getattr(config, "_attn_implementation", None))


def _plain(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> Tensor:
    """The attention that the user's model would have computed.

    A model loaded with eager attention, or one that only has it (soft-capped logits), goes through its own eager
    function, so that without an intervention nothing changes, to the last bit; one with an attention function that its
    user has registered, or flex attention, through that; all others through the fused kernel.
    """
    original = implementation(module)
    if original != NAME and has_function_of_its_own(original):
        out: Tensor = ALL_ATTENTION_FUNCTIONS[original](module, query, key, value, mask, **kwargs)[0]
        return out
    needs_eager = kwargs.get("softcap") is not None or extra_logits(kwargs) is not None
    if not needs_eager and original != "eager":
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)[0]
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if eager is None:
        raise HookError(
            f"{type(module).__name__} has no eager attention function to compute its soft-capped logits with"
        )
    if mask is None and query.shape[2] > 1 and getattr(module, "is_causal", True):
        n_queries, n_keys = query.shape[2], key.shape[2]
        mask = torch.ones(n_queries, n_keys, dtype=torch.bool, device=query.device).tril()[None, None]
    if mask is not None and mask.dtype == torch.bool:
        hide = torch.finfo(query.dtype).min
        mask = torch.zeros(mask.shape, dtype=query.dtype, device=mask.device).masked_fill(~mask, hide)
    kwargs.pop("is_causal")
    computed: Tensor = eager(module, query, key, value, mask, **kwargs)[0]
    return computed


def has_function_of_its_own(implementation: str) -> bool:
    """Whether an attention implementation is neither eager nor one of the fused kernels that sdpa stands for."""
    return implementation not in ("eager", "sdpa", "None") and "flash" not in implementation


def _name_on(original: str) -> str:
    """The name under which `attention` stands in for an implementation, with the masks that it is used to.

    With its own masks, so that a forward of another thread that is under way when the name changes stays right.
    """
    if "flash" in str(original):  # no name may have that in it, and its masks hold too little
        return NAME
    name = f"{NAME}_on_{original}"
    AttentionInterface.register(name, attention)
    if original in ALL_MASK_ATTENTION_FUNCTIONS:
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[original])
    return name


@dataclass
class _Switch:
    config: Any
    original: str
    users: int


_SWITCHES: dict[int, _Switch] = {}


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
            config._attn_implementation_internal = _name_on(switch.original)
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


@contextmanager
def copying(memo: Mapping[int, Any]) -> Iterator[None]:
    """Inside, a model is copied; the copy's attention is its user's, also where that of the model is tapped now.

    Args:
        memo: the copies by the ids of their originals, as `copy.deepcopy` notes them.
    """
    with _LOCK:
        yield
        for key, switch in _SWITCHES.items():
            if key in memo:
                memo[key]._attn_implementation_internal = switch.original


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
