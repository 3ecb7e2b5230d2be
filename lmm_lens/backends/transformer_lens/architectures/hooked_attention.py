"""Attention that Hugging Face computes and whose hooks can all be edited.

TransformerLens reconstructs the attention of the families it knows well and delegates the rest to Hugging Face; of the
delegated ones it fires `hook_pattern` when the output is already computed, so an edit is discarded. Here the module
keeps its own projections, rotary embedding, norms, cache and gates, and only the last step (scores, softmax, weighted
sum) runs through `attend`, which Hugging Face calls as an attention implementation and which fires the hooks where they
belong. It works for every model whose attention goes through that interface.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge.generalized_components import AttentionBridge
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

IMPLEMENTATION = "lmm_lens_bridge"  # must not contain "flash", which makes transformers import a kernel package
_OWNER = "_hooked_by"


class HookedAttention(AttentionBridge):
    """A delegated attention whose scores and pattern pass through their hooks before they are used.

    Hooks, once a pass: `hook_in`, `q/k/v.hook_out` (`hook_q`, `hook_k`, `hook_v`) where the projections are separate,
    `hook_attn_scores` and `hook_pattern` [batch, head, query, key], `hook_z` [batch, query, head, d_head], `hook_out`.
    """

    supports_split_qkv_fork = False

    def __init__(self, name: str, config: Any, submodules: dict[str, Any], optional: bool = False) -> None:
        super().__init__(
            name,
            config,
            submodules,
            maintain_native_attention=True,
            requires_attention_mask=True,
            optional=optional,
            fused_qkv="q" not in submodules,
        )
        for never_fires in ("hook_rot_q", "hook_rot_k"):  # the rotation is inside the module; a KeyError is honest
            if hasattr(self, never_fires):
                delattr(self, never_fires)
                self._hook_registry.pop(never_fires, None)

    def set_original_component(self, original_component: nn.Module) -> None:
        """Bind the module, and tell it whose hooks to fire."""
        super().set_original_component(original_component)
        original_component.__dict__[_OWNER] = self  # not an attribute: torch would register a cycle of modules

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module; `attend` fires the inner hooks."""
        assert self.original_component is not None
        if isinstance(kwargs.get("hidden_states"), Tensor):
            kwargs["hidden_states"] = self.hook_in(kwargs["hidden_states"])
        else:
            args = (self.hook_in(args[0]), *args[1:])
        output = self.original_component(*args, **kwargs)
        if isinstance(output, tuple):
            return (self.hook_out(output[0]), *output[1:])
        return self.hook_out(output)


class HookedTowerAttention(HookedAttention):
    """Attention of a vision tower, whose pattern is computed, and `hook_pattern` fires, where that is hooked."""

    def __init__(self, name: str, config: Any, submodules: dict[str, Any]) -> None:
        super().__init__(name, config, submodules)
        del self.hook_attn_scores  # nothing hands out what stands before the softmax there; a KeyError is honest
        self._hook_registry.pop("hook_attn_scores")


def hooks_of(module: nn.Module | None) -> HookedAttention | None:
    """The bridge whose hooks an attention module fires."""
    return None if module is None else module.__dict__.get(_OWNER)


def _unhooked(x: Tensor) -> Tensor:
    return x


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    sinks: Tensor | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Eager attention that passes its scores and its pattern through the hooks of the module's bridge.

    Args:
        module: the Hugging Face attention module.
        query: [batch, head, query, d_head]
        key, value: [batch, kv_head, key, d_head], not repeated for grouped queries
        attention_mask: added to the scores, [batch, head | 1, query, key].
        scaling: of the scores, 1/sqrt(d_head) by default.
        dropout: of the pattern, in training.
        softcap: scores are squeezed into (-softcap, softcap) (Gemma 2).
        s_aux, sinks: a logit that takes part in the softmax and holds no value, by its two names: [head], or
            [batch, head, query, 1].
        position_bias: added to the scores.

    Returns:
        The heads' outputs [batch, query, head, d_head] and the pattern [batch, head, query, key].
    """
    owner = module.__dict__.get(_OWNER)
    on_scores: HookPoint | Any = _unhooked if owner is None else owner.hook_attn_scores
    on_pattern: HookPoint | Any = _unhooked if owner is None else owner.hook_pattern
    extra = sinks if s_aux is None else s_aux
    pattern = eager_pattern(query, key, attention_mask, scaling, softcap, extra, position_bias, on_scores)
    pattern = on_pattern(nn.functional.dropout(pattern, dropout, module.training))
    return (pattern @ for_each_head(value, query)).transpose(1, 2).contiguous(), pattern


def eager_pattern(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    extra: Tensor | None = None,
    position_bias: Tensor | None = None,
    on_scores: Callable[[Tensor], Tensor] = _unhooked,
) -> Tensor:
    """The pattern [batch, head, query, key] as transformers computes it, to the last bit; arguments as of `attend`.

    Args:
        mask: added to the scores, or True where visible.
        extra: `s_aux` or `sinks`.
        on_scores: changes the scores.
    """
    scores = (
        query @ for_each_head(key, query).transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    )
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if position_bias is not None:
        scores = scores + position_bias
    if mask is not None:
        mask = mask[..., : key.shape[2]]
        is_bool = mask.dtype == torch.bool
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min) if is_bool else scores + mask
    scores = on_scores(scores)
    if extra is None:
        return scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    extra = extra if extra.ndim == 4 else extra.reshape(1, -1, 1, 1)
    extra = extra.expand(*scores.shape[:-1], 1).to(scores.dtype)
    return torch.cat([scores, extra], -1).softmax(-1, dtype=torch.float32)[..., :-1].to(query.dtype)


def for_each_head(shared: Tensor, query: Tensor) -> Tensor:
    """Keys or values [batch, kv_head, key, d_head] of grouped queries, repeated for each head."""
    groups = query.shape[1] // shared.shape[1]
    return shared.repeat_interleave(groups, 1) if groups > 1 else shared


AttentionInterface.register(IMPLEMENTATION, attend)
AttentionMaskInterface.register(IMPLEMENTATION, eager_mask)


def use_hooks(model: Any) -> None:
    """Make the decoder of a model compute its attention with `attend`; its vision tower keeps its own."""
    nested = "text_config" in model.config.sub_configs
    model.set_attn_implementation({"text_config": IMPLEMENTATION} if nested else IMPLEMENTATION)
