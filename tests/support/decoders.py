"""More tiny models, of architectures that only the bridge must know apart: other decoders, delegated attention."""

from typing import Any
from unittest.mock import patch

import torch
import transformers as hf
from torch import nn

from tests.support.models import IMAGE, Inputs
from tests.support.models.grids import GRID_TOWER, _grid_thw
from tests.support.models.parts import (
    CLOSE,
    MROPE,
    NO_HEAD_DIM,
    OPEN,
    TEXT,
    Builder,
    around,
    clip,
    picture,
    seeded,
    siglip,
)
from tests.support.models.tiles import llava_next_of

DECODERS: dict[str, Builder] = {}


def decoder(build: Builder) -> Builder:
    """Register a builder."""
    DECODERS[build.__name__] = seeded(build)
    return DECODERS[build.__name__]


def _llava(text: Any) -> tuple[nn.Module, Inputs]:
    config = hf.LlavaConfig(vision_config=clip(), text_config=text, image_token_index=IMAGE, image_seq_length=16)
    inputs = {"input_ids": around(*[IMAGE] * 16), "pixel_values": picture(1, 3, 56, 56)}
    return hf.LlavaForConditionalGeneration(config), inputs


@decoder
def llava_llama3():
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return _llava(hf.LlamaConfig(**TEXT, rope_parameters={**rope, "original_max_position_embeddings": 64}))


@decoder
def llava_mistral():
    """A sliding window shorter than the prompt."""
    return _llava(hf.MistralConfig(**TEXT, sliding_window=12))


@decoder
def llava_phi3():
    """One projection for q, k and v, one for the gate and the values of the feed-forward."""
    return _llava(hf.Phi3Config(**NO_HEAD_DIM))


@decoder
def llava_next_phi3():
    return llava_next_of(hf.Phi3Config(**NO_HEAD_DIM))


@decoder
def aya_vision():
    """Attention and feed-forward read the same normed stream; LayerNorm."""
    config = hf.AyaVisionConfig(
        vision_config=siglip(),
        text_config=hf.Cohere2Config(**TEXT, sliding_window=12),
        image_token_index=IMAGE,
        downsample_factor=2,
    )
    inputs = {"input_ids": around(*[IMAGE] * 4), "pixel_values": picture(1, 3, 56, 56)}
    return hf.AyaVisionForConditionalGeneration(config), inputs


@decoder
def cohere2_vision():
    config = hf.Cohere2VisionConfig(
        vision_config=siglip(),
        text_config=hf.Cohere2Config(**TEXT, sliding_window=12),
        image_token_id=IMAGE,
        downsample_factor=2,
        alignment_intermediate_size=64,
    )
    inputs = {"input_ids": around(*[IMAGE] * 4), "pixel_values": picture(1, 3, 56, 56)}
    return hf.Cohere2VisionForConditionalGeneration(config), inputs


@decoder
def qwen3_vl_moe():
    vision = {**GRID_TOWER, "depth": 3, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    text = {"rope_parameters": {**MROPE, "mrope_interleaved": True}, **experts}
    return _grid_thw(hf.Qwen3VLMoeForConditionalGeneration, hf.Qwen3VLMoeConfig, vision, text, patch=16)


class Llama4ForConditionalGeneration(hf.Llama4ForConditionalGeneration):
    """Its decoder is where the other models have theirs."""

    def get_decoder(self):
        return self.language_model.model


@decoder
def llama4():
    """Chunked attention, experts in every other layer, and a layer without rotary embedding."""
    text = hf.Llama4TextConfig(
        **{**TEXT, "num_hidden_layers": 4},
        intermediate_size_mlp=96,
        num_local_experts=2,
        num_experts_per_tok=1,
        attention_chunk_size=16,
        interleave_moe_layer_step=2,
        no_rope_layer_interval=4,
    )
    vision = {
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
        "vision_output_dim": 64,
        "projector_input_dim": 64,
        "projector_output_dim": 64,
        "pixel_shuffle_ratio": 0.5,
    }
    config = hf.Llama4Config(vision_config=vision, text_config=text, image_token_index=IMAGE)
    inputs = {"input_ids": around(*[IMAGE] * 4), "pixel_values": picture(1, 3, 56, 56)}
    model = Llama4ForConditionalGeneration(config)
    for layer in model.get_decoder().layers:
        layer.__dict__["mlp"] = layer.feed_forward  # the name that the tests know
    return model, inputs


@decoder
def gemma4():
    """Heads of two sizes, and two layers that reuse the keys and values of others."""
    text = hf.Gemma4TextConfig(
        **{**TEXT, "num_hidden_layers": 4},
        global_head_dim=32,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"] * 2,
        num_kv_shared_layers=2,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=200,
    )
    vision = hf.Gemma4VisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        patch_size=4,
        pooling_kernel_size=2,
        position_embedding_size=64,
    )
    config = hf.Gemma4Config(
        text_config=text,
        vision_config=vision,
        audio_config=None,
        image_token_id=IMAGE,
        boi_token_id=OPEN,
        eoi_token_id=CLOSE,
    )
    ids = around(OPEN, *[IMAGE] * 4, CLOSE)
    grid = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="xy")
    inputs = {
        "input_ids": ids,
        "mm_token_type_ids": (ids == IMAGE).long(),
        "pixel_values": torch.rand(1, 16, 48),
        "image_position_ids": torch.stack(grid, -1).reshape(1, 16, 2),
    }
    return hf.Gemma4ForConditionalGeneration(config), inputs


@decoder
def gemma3n():
    """Four residual streams. Its vision tower is one of timm's, which is not here: text only."""
    text = hf.Gemma3nTextConfig(
        **{**TEXT, "num_hidden_layers": 4},
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"] * 2,
        num_kv_shared_layers=2,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=200,
        activation_sparsity_pattern=[0.0] * 4,
        laurel_rank=8,
    )
    config = hf.Gemma3nConfig(text_config=text)
    with patch("transformers.models.gemma3n.modeling_gemma3n.AutoModel.from_config") as parts:
        parts.side_effect = lambda part: hf.Gemma3nTextModel(part) if part is config.text_config else nn.Identity()
        model = hf.Gemma3nForConditionalGeneration(config)
    return model, {"input_ids": around(9, 10, 11)}
