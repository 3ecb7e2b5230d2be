"""Phi-3.5-vision: negative ids stand for pictures, `vision_embed_tokens` inside `model`, attention written out.

A picture is cut into crops of 336 pixels. Its tokens are the crops' grid, with a vector after each row; a separator;
and the grid of the whole picture, again with a vector after each row.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from .parts import LANGUAGE, Norm, bias, rotated

CROP, CELLS = 336, 12


class Phi3VConfig(PreTrainedConfig):
    """A language model's, with `embd_layer` and `img_processor` in it."""

    model_type = "phi3_v"

    def __init__(self, **kwargs: Any) -> None:
        kwargs = {**LANGUAGE, **kwargs}
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size"):
            setattr(self, name, kwargs.pop(name))
        super().__init__(**{name: kwargs[name] for name in ("pad_token_id", "bos_token_id", "eos_token_id")})


class Phi3ImageEmbedding(nn.Module):
    """Words and pictures to embeddings. It writes into the ids that it is given."""

    def __init__(self, config: Phi3VConfig, wte: nn.Embedding) -> None:
        super().__init__()
        self.wte, width = wte, 8
        self.img_processor = nn.Conv2d(3, width, 14, 14)
        self.glb_GN = nn.Parameter(torch.randn(1, 1, 4 * width))
        self.sub_GN = nn.Parameter(torch.randn(1, 1, 1, 4 * width))
        self.img_projection = nn.Linear(4 * width, config.hidden_size)

    def with_ends(self, grid: Tensor) -> Tensor:
        """[row, column, width] with a vector after each row, flat."""
        return torch.cat([grid, self.sub_GN[0].expand(len(grid), 1, -1)], 1).flatten(0, 1)

    def hd_features(self, crops: Tensor, size: Tensor) -> Tensor:
        down, across = (int(side) // CROP for side in size)
        seen = torch.tanh(self.img_processor(crops)).unflatten(2, (CELLS, 2)).unflatten(4, (CELLS, 2))
        cells = seen.permute(0, 2, 4, 3, 5, 1).flatten(3)  # crop, row, column, width
        parts = cells[1 : 1 + down * across].unflatten(0, (down, across)).transpose(1, 2)
        whole = parts.reshape(down * CELLS, across * CELLS, -1)
        return torch.cat([self.with_ends(whole), self.glb_GN[0], self.with_ends(cells[0])])

    def forward(self, input_ids: Tensor, pixel_values: Tensor, image_sizes: Tensor | None = None) -> Tensor:
        positions = torch.nonzero((input_ids < 0) & (input_ids > -int(1e9)), as_tuple=True)
        hidden = self.wte(input_ids.clamp_min_(0))
        if len(positions[0]):
            features = [self.hd_features(*each) for each in zip(pixel_values, image_sizes, strict=True)]
            hidden = hidden.index_put(positions, self.img_projection(torch.cat(features)))
        return hidden


class Phi3Attention(nn.Module):
    """One projection to queries, keys and values; a softmax between two products."""

    def __init__(self, config: Phi3VConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.num_heads, self.head_dim = config.num_attention_heads, config.hidden_size // config.num_attention_heads
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor, position_ids: Tensor, past_key_value: Any
    ) -> tuple[Tensor, Tensor]:
        heads = self.qkv_proj(hidden_states).unflatten(-1, (3, self.num_heads, self.head_dim))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        query, key = rotated(query, position_ids), rotated(key, position_ids)
        if past_key_value is not None:
            key, value = past_key_value.update(key, value, self.layer_idx)
        weights = torch.matmul(query, key.transpose(2, 3)) / math.sqrt(self.head_dim) + attention_mask
        weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(value.dtype)
        return self.o_proj(torch.matmul(weights, value).transpose(1, 2).flatten(2)), weights


class Phi3MLP(nn.Module):
    """Gate and input in one projection."""

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, -1)
        return self.down_proj(up * nn.functional.silu(gate))


class Phi3DecoderLayer(nn.Module):
    """Returns a tuple, as older layers do."""

    def __init__(self, config: Phi3VConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn, self.mlp = Phi3Attention(config, layer_idx), Phi3MLP(config)
        self.input_layernorm, self.post_attention_layernorm = Norm(config.hidden_size), Norm(config.hidden_size)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor]:
        x = hidden_states + self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)[0]
        return (x + self.mlp(self.post_attention_layernorm(x)),)


class Phi3VModel(PreTrainedModel):
    """Embeds pictures itself."""

    config_class = Phi3VConfig

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.vision_embed_tokens = Phi3ImageEmbedding(config, self.embed_tokens)
        self.layers = nn.ModuleList(Phi3DecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = Norm(config.hidden_size)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        past_key_values: Any,
        pixel_values: Tensor | None,
        image_sizes: Tensor | None,
    ) -> Tensor:
        n_seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        if pixel_values is None:
            x = self.embed_tokens(input_ids)
        else:
            x = self.vision_embed_tokens(input_ids, pixel_values=pixel_values, image_sizes=image_sizes)
        if position_ids is None:
            position_ids = torch.arange(n_seen, n_seen + x.shape[1])[None]
        added = bias(attention_mask, x.shape[1], n_seen + x.shape[1])
        for layer in self.layers:
            x = layer(x, attention_mask=added, position_ids=position_ids, past_key_value=past_key_values)[0]
        return self.norm(x)


class Phi3VForCausalLM(PreTrainedModel, GenerationMixin):
    """Generates by itself, with the pictures given again at each step."""

    config_class = Phi3VConfig

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__(config)
        self.model = Phi3VModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        x = self.model(input_ids, attention_mask, position_ids, past_key_values, pixel_values, image_sizes)
        return CausalLMOutputWithPast(logits=self.lm_head(x).float(), past_key_values=past_key_values)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, past_key_values: Any = None, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        n_seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        return {
            "input_ids": input_ids[:, n_seen:],
            "position_ids": positions[:, n_seen : input_ids.shape[1]],
            "past_key_values": past_key_values,
            "use_cache": kwargs.get("use_cache"),
            "attention_mask": attention_mask,
            "pixel_values": kwargs["pixel_values"],
            "image_sizes": kwargs["image_sizes"],
        }


def model() -> Phi3VForCausalLM:
    torch.manual_seed(4)
    made = Phi3VForCausalLM(Phi3VConfig()).eval()
    with torch.no_grad():
        for layer in made.model.layers:
            layer.self_attn.qkv_proj.weight.mul_(4)
    return made


def inputs(n_rows: int = 1) -> dict[str, Any]:
    """Alone, a row with two pictures next to each other, of two crops and of one; a batch has one picture a row."""
    sizes = torch.tensor([[336, 672], [336, 336]])
    n = [(2 + 1) * 144 + 1 + (1 + 1) * 12, (1 + 1) * 144 + 1 + (1 + 1) * 12]
    if n_rows == 1:
        rows = [[1, 5, *[-1] * n[0], *[-2] * n[1], 7, 8, 9]]
    else:
        rows = [[1, 5, 6, *[-1] * n[0], 7, 8], [0] * (n[0] - n[1]) + [1, 5, *[-1] * n[1], 7, 8, 9]]
    ids = torch.tensor(rows)
    crops = torch.randn(2, 3, 3, CROP, CROP, generator=torch.Generator().manual_seed(4))
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "pixel_values": crops, "image_sizes": sizes}
