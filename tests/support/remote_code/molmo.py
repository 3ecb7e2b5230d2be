"""Molmo: decoder blocks of its own in `transformer.blocks`, one fused projection, lists of keys and values as a cache.

`image_input_idx` says at which positions each patch's features are added to what stands there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .parts import LANGUAGE, Norm, bias, rotated

IM_PATCH, IM_COL, N_PATCHES, PIXELS = 90, 92, 4, 12


class MolmoConfig(PreTrainedConfig):
    """A language model's by the usual names."""

    model_type = "molmo"

    def __init__(self, **kwargs: Any) -> None:
        kwargs = {**LANGUAGE, **kwargs}
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size"):
            setattr(self, name, kwargs.pop(name))
        self.use_position_ids = True
        super().__init__(**{name: kwargs[name] for name in ("pad_token_id", "bos_token_id", "eos_token_id")})


class MolmoSequentialBlock(nn.Module):
    """Attention and feed-forward without modules of their own; gives keys and values beside its output."""

    def __init__(self, config: MolmoConfig) -> None:
        super().__init__()
        self.n_heads, self.n_kv = config.num_attention_heads, config.num_key_value_heads
        width, self.size = config.hidden_size, config.hidden_size // config.num_attention_heads
        self.fused_dims = (width, self.n_kv * self.size, self.n_kv * self.size)
        self.attn_norm, self.ff_norm = Norm(width), Norm(width)
        self.att_proj = nn.Linear(width, sum(self.fused_dims), bias=True)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.ff_proj = nn.Linear(width, 4 * width, bias=False)
        self.ff_out = nn.Linear(2 * width, width, bias=False)

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, attention_bias: Tensor, position_ids: Tensor, layer_past: Any
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        q, k, v = (x.unflatten(-1, (-1, self.size)).transpose(1, 2) for x in (q, k, v))
        q, k = rotated(q, position_ids), rotated(k, position_ids)
        if layer_past is not None:
            k, v = torch.cat([layer_past[0], k], 2), torch.cat([layer_past[1], v], 2)
        group = self.n_heads // self.n_kv
        full = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        out = nn.functional.scaled_dot_product_attention(q, *full, attn_mask=attention_bias, dropout_p=0.0)
        return self.attn_out(out.transpose(1, 2).flatten(2)), (k, v)

    def forward(
        self, x: Tensor, attention_bias: Tensor, position_ids: Tensor, layer_past: Any = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        q, k, v = self.att_proj(self.attn_norm(x)).split(self.fused_dims, -1)
        attended, cache = self.attention(q, k, v, attention_bias, position_ids, layer_past)
        x = x + attended
        value, gate = self.ff_proj(self.ff_norm(x)).chunk(2, -1)
        return x + self.ff_out(nn.functional.silu(gate) * value), cache


class Molmo(nn.Module):
    """Words, pictures added to them, blocks, logits."""

    def __init__(self, config: MolmoConfig) -> None:
        super().__init__()
        blocks = nn.ModuleList(MolmoSequentialBlock(config) for _ in range(config.num_hidden_layers))
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.hidden_size),
                "ln_f": Norm(config.hidden_size),
                "blocks": blocks,
                "ff_out": nn.Linear(config.hidden_size, config.vocab_size, bias=False),
            }
        )
        self.vision_backbone = nn.Linear(PIXELS, config.hidden_size)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        images: Tensor | None,
        image_input_idx: Tensor | None,
        position_ids: Tensor | None,
        past_key_values: Any,
    ) -> tuple[Tensor, list[Any]]:
        if attention_mask is None:
            attention_mask = input_ids != -1
        n_seen = past_key_values[0][0].shape[-2] if past_key_values else 0
        n_keys = n_seen + input_ids.shape[1]
        if position_ids is None:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)
        x = self.transformer["wte"](input_ids * (input_ids != -1))
        if images is not None:
            assert past_key_values is None, "Cached key and values should not be used with images."
            features, index = self.vision_backbone(images).flatten(1, 2), image_input_idx.flatten(1)
            rows = torch.arange(len(x))[:, None].expand_as(index)
            x[rows[index >= 0], index[index >= 0]] += features[index >= 0]
        added = bias(attention_mask, input_ids.shape[1], n_keys)
        caches = []
        for number, block in enumerate(self.transformer["blocks"]):
            past = past_key_values[number] if past_key_values else None
            x, cache = block(x, attention_bias=added, position_ids=position_ids, layer_past=past)
            caches.append(cache)
        return self.transformer["ff_out"](self.transformer["ln_f"](x)), caches


class MolmoForCausalLM(PreTrainedModel, GenerationMixin):
    """Generates from a batch, by `generate_from_batch`."""

    config_class = MolmoConfig

    def __init__(self, config: MolmoConfig) -> None:
        super().__init__(config)
        self.model = Molmo(config)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def get_input_embeddings(self) -> nn.Module:
        return self.model.transformer["wte"]

    def get_output_embeddings(self) -> nn.Module:
        return self.model.transformer["ff_out"]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        images: Tensor | None = None,
        image_masks: Tensor | None = None,
        image_input_idx: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        last_logits_only: bool | None = None,
        append_last_valid_logits: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        # not `self.model(...)`, so that hooks on the model itself do not see this
        logits, caches = self.model.forward(
            input_ids, attention_mask, images, image_input_idx, position_ids, past_key_values
        )
        if last_logits_only:
            logits = logits[:, -1:]
        return CausalLMOutputWithPast(logits=logits, past_key_values=caches if use_cache else None)

    @torch.no_grad()
    def generate_from_batch(self, batch: dict[str, Any], generation_config: Any = None, **kwargs: Any) -> Any:
        ids, mask = batch["input_ids"], batch.get("attention_mask")
        positions = None
        if mask is None:
            mask = ids != -1
            positions = (mask.long().cumsum(-1) - 1).clamp_min(0)
            mask = torch.cat([mask, mask.new_ones(len(ids), generation_config.max_new_tokens)], 1)
        assert mask.shape == (len(ids), ids.shape[1] + generation_config.max_new_tokens)
        rest = {name: batch.get(name) for name in ("images", "image_masks", "image_input_idx")}
        return super().generate(ids, generation_config, attention_mask=mask, position_ids=positions, **rest, **kwargs)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, past_key_values: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        names = ("attention_mask", "position_ids")
        given = {name: kwargs.get(name) for name in names}
        if past_key_values:
            return {"input_ids": input_ids[:, -1:], "past_key_values": past_key_values, "use_cache": True, **given}
        names = ("images", "image_masks", "image_input_idx")
        return {"input_ids": input_ids, "use_cache": True, **given, **{name: kwargs.get(name) for name in names}}

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], is_encoder_decoder: bool = False, num_new_tokens: int = 1
    ) -> dict[str, Any]:
        model_kwargs["position_ids"] = model_kwargs["position_ids"][:, -1:] + 1
        for name in ("images", "image_masks", "image_input_idx"):
            model_kwargs.pop(name, None)
        model_kwargs["past_key_values"] = outputs.past_key_values
        return model_kwargs


def model() -> MolmoForCausalLM:
    torch.manual_seed(5)
    made = MolmoForCausalLM(MolmoConfig()).eval()
    with torch.no_grad():
        for block in made.model.transformer["blocks"]:
            block.att_proj.weight.mul_(4)
    return made


def inputs(n_rows: int = 1) -> dict[str, Any]:
    """A picture of two crops a row, a column token after each; the second row has padding (-1) before its words."""
    crop = [*[IM_PATCH] * N_PATCHES, IM_COL]
    ids = torch.tensor([[1, 5, *crop, *crop, 7, 8, 9], [-1, -1, 1, *crop, *crop, 8, 9]][:n_rows])
    starts = torch.tensor([[2, 7], [3, 8]])[:n_rows]
    index = starts[..., None] + torch.arange(N_PATCHES)
    images = torch.randn(n_rows, 2, N_PATCHES, PIXELS, generator=torch.Generator().manual_seed(5)) * 3
    masks = torch.ones(n_rows, 2, N_PATCHES)
    return {"input_ids": ids, "images": images, "image_masks": masks, "image_input_idx": index}
