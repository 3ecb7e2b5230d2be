"""Any configuration of transformers made tiny: its own defaults, with every size replaced by a small one."""

from collections.abc import Mapping
from typing import Any

import torch
import transformers as hf
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as CLASSES

from tests.support.models.parts import BOS, EOS, IMAGE, PAD, VIDEO

WIDTHS = ("hidden_size", "d_model", "embed_dim", "out_hidden_size", "output_dim", "text_hidden_size", "adapter_out_dim")
MIDDLES = ("ffn_dim", "encoder_ffn_dim", "moe_intermediate_size", "shared_expert_intermediate_size", "moe_hidden_size")
MIDDLES += (
    "intermediate_size",
    "dense_intermediate_size",
    "shared_intermediate_size",
    "shared_experts_intermediate_size",
)
MIDDLES += ("projector_hidden_size", "projection_hidden_size", "projection_hidden_dim", "projection_intermediate_size")
DEPTHS = ("num_hidden_layers", "num_layers", "encoder_layers", "depth", "num_key_value_heads", "num_experts_per_tok")
HEADS = ("num_attention_heads", "encoder_attention_heads", "attention_heads", "num_heads", "index_n_heads")
HEADS += ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")
SPANS = ("head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "index_head_dim", "downsample_hidden_size")
SPANS += ("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim", "pos_emb_height", "pos_emb_width")
SIZES = {
    **dict.fromkeys((*WIDTHS, *MIDDLES), 32),
    **dict.fromkeys(DEPTHS, 2),
    **dict.fromkeys(HEADS, 4),
    **dict.fromkeys(SPANS, 8),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "sliding_window", "sliding_window_size"), 16),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    **dict.fromkeys(("max_position_embeddings", "rel_extent"), 512),
    **dict.fromkeys(("num_position_embeddings", "index_topk"), 64),
    "vocab_size": 300,
    "image_size": 56,
    "patch_size": 14,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "image_token_id": IMAGE,
    "image_token_index": IMAGE,
    "video_token_id": VIDEO,
    "video_token_index": VIDEO,
}
BY_LAYER = ("layer_types", "mlp_layer_types", "per_layer_config")  # of as many layers as the real model has


def shrunk(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with small sizes, also of the parts."""
    small = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and "model_type" in value:
            small[name] = shrunk(value)
        elif name not in BY_LAYER:
            replaced = name in SIZES and (isinstance(value, int) or name.startswith(("image_token", "video_token")))
            small[name] = SIZES[name] if replaced else value
    return small


def merged(settings: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with some of them replaced, part by part."""
    for name, value in own.items():
        inside = isinstance(value, Mapping) and isinstance(settings.get(name), dict)
        settings[name] = merged(settings[name], value) if inside and "model_type" in settings[name] else value
    return settings


def tiny_model(model_type: str, **own: Any) -> nn.Module:
    """The stock class of a `model_type`, with random weights of few numbers.

    Args:
        own: settings that a small size is not enough for.
    """
    config = hf.CONFIG_MAPPING[model_type]
    settings = merged(shrunk(config().to_dict()), own)
    settings = {name: value for name, value in settings.items() if name not in ("model_type", "transformers_version")}
    return getattr(hf, CLASSES[model_type])(config(**settings)).eval()


def empty(model_type: str) -> nn.Module:
    """The same without numbers, for what is refused before it runs."""
    own = {"diffusion_gemma": {"text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32}}}
    with torch.device("meta"):
        return tiny_model(model_type, **own.get(model_type, {}))
