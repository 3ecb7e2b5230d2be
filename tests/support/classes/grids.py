"""Classes of the Qwen layout: patches in one tensor, and `image_grid_thw` with how many of each picture."""

from typing import Any

import torch
from torch import nn

from tests.support.classes.table import run_of, tiny
from tests.support.models.parts import Inputs, picture

GRID = torch.tensor([[1, 4, 6]])  # patches, merged 2 x 2 into 6 tokens
MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
WHOLE = {**MROPE, "partial_rotary_factor": 1.0}
WOVEN = {**MROPE, "mrope_interleaved": True}
WINDOWS = {"fullatt_block_indexes": [1], "window_size": 56}
DEEPSTACK = {"deepstack_visual_indexes": [0]}
TWO_KINDS = ["sliding_attention", "full_attention"]
INDEXED = {"num_key_value_heads": 4, "layer_types": ["indexed_attention"] * 2, "mlp_layer_types": ["dense", "sparse"]}

QWEN4 = {
    "layer_types": ["linear_attention", "indexed_attention"],
    "rope_parameters": WOVEN,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "hc_count": 2,
    "hc_lowrank": 8,
    "ple_embed_dim": 8,
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 64,
    "indexer_compress_ratio": 1,
}
GLM5 = {
    **INDEXED,
    "layer_types": ["linear_attention", "indexed_attention"],
    "indexer_types": ["full", "full"],
    "qk_rope_head_dim": 0,
    "head_dim": 0,
    "linear_num_heads": 4,
    "index_kpool": 4,
    "hc_mult": 2,
}
MUSE = {"layer_types": TWO_KINDS, "layer_rope_theta": [1e4, 1e4]}
TOWER = {"layer_types": ["window_attention", "full_attention"], "max_position_embeddings": 64}


@tiny(
    "cohere_compass",
    text_config={"rope_parameters": dict.fromkeys(TWO_KINDS, MROPE), "layer_types": TWO_KINDS},
    vision_config=DEEPSTACK,
)
@tiny("cosmos3_edge", text_config={"rope_parameters": MROPE}, vision_config={"num_patches": 64})
@tiny("cosmos3_omni", text_config={"rope_parameters": WOVEN}, vision_config=DEEPSTACK)
@tiny(
    "dots3_note",
    text_config={**INDEXED, "head_dim": 16},
    vision_config={"mlp_layer_types": ["dense", "sparse"], "adapter_in_dim": 32},
    audio_config={"adapter_input_size": 32, "conv_output_size": 128},
)
@tiny("exaone4_5", text_config={"layer_types": ["full_attention"] * 2}, vision_config=WINDOWS)
@tiny("glm_ocr", text_config={"rope_parameters": WHOLE})
@tiny("glmga", text_config={"rope_parameters": WHOLE})
@tiny("hyperclovax_vision_v2", vision_config=WINDOWS)
@tiny("lfm3_vl", text_config={"layer_types": TWO_KINDS}, vision_config={"layer_types": ["conv", "full_attention"]})
@tiny("minimax_m3_vl", text_config={"rotary_dim": 8, "mlp_layer_types": ["dense", "sparse"]})
@tiny(
    "qwen2_5_omni_thinker",
    text_config={"rope_parameters": MROPE, "layer_types": ["full_attention"] * 2},
    vision_config=WINDOWS,
    vision_start_token_id=154,
)
@tiny("qwen4_exp", text_config=QWEN4)
@tiny(
    "qwen3_omni_moe_thinker", text_config={"rope_parameters": WOVEN}, vision_config=DEEPSTACK, vision_start_token_id=154
)
def flat(model: nn.Module) -> Inputs:
    """Every patch as one row of numbers."""
    vision: Any = model.config.vision_config
    together = getattr(vision, "temporal_patch_size", 1)
    width = 3 * together * vision.patch_size**2
    return {"input_ids": run_of(6), "pixel_values": picture(24, width), "image_grid_thw": GRID}


@tiny("glm5_next", text_config=GLM5)
def glm5_next(model: nn.Module) -> Inputs:
    return flat(model)


@tiny(
    "hunyuan_vl",
    text_config={"rope_parameters": {**MROPE, "mrope_section": [1, 1, 1, 1]}, "head_dim": 8},
    vision_config={"img_max_token_num": 64},
)
def with_newlines(model: nn.Module) -> Inputs:
    """A begin, each row with a newline, and an end: all of them image tokens."""
    return {**flat(model), "input_ids": run_of(2 * (3 + 1) + 2)}


@tiny("kimi_k25", text_config={"num_key_value_heads": 4})
def square_patches(model: nn.Module) -> Inputs:
    return {"input_ids": run_of(6), "pixel_values": picture(24, 3, 14, 14), "image_grid_thw": GRID}


@tiny("muse_glimmer", text_config=MUSE, vision_config=TOWER, out_hidden_size=128)
@tiny(
    "muse_spark",
    text_config={**MUSE, "mlp_layer_types": ["sparse", "sparse"]},
    vision_config=TOWER,
    out_hidden_size=128,
    audio_config={"num_hidden_layers": 4, "hidden_sizes": [8] * 4, "depths": [1] * 4},
)
def two_frames(model: nn.Module) -> Inputs:
    width = 3 * model.config.vision_config.patch_temporal * 14**2
    return {"input_ids": run_of(6), "pixel_values": picture(24, width), "image_grid_thw": GRID}


INKLING = {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8}


@tiny("inkling2", text_config={**INKLING, "unpadded_vocab_size": 300}, vision_config={"posemb_grid_size": 8})
def inkling2(model: nn.Module) -> Inputs:
    """Merged patches, each a small picture, and their grid."""
    return {"input_ids": run_of(6), "pixel_values": picture(6, 28, 28, 3), "image_grid_thw": torch.tensor([[1, 2, 3]])}
