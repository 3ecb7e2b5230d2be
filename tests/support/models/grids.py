"""Families whose grid follows the picture's own shape."""

from typing import Any

import torch
import transformers as hf
from torch import Tensor

from .parts import CLOSE, IMAGE, MROPE, OPEN, TEXT, VIDEO, around, family, picture, pixtral


def _grid_thw(model: type, config: type, vision: dict[str, Any], text: dict[str, Any] | None = None, patch: int = 14):
    """The Qwen layout: 8 x 12 patches merged 2 x 2 into 24 tokens, between start and end."""
    vision = {
        "depth": 2,
        "num_heads": 2,
        "patch_size": patch,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        **vision,
    }
    settings = config(
        vision_config=vision,
        text_config={**TEXT, "rope_parameters": MROPE, **(text or {})},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=154,  # not those of the prompts: in these tests every token but the image's is text
        vision_end_token_id=155,
    )
    ids = around(OPEN, *[IMAGE] * 24, CLOSE)
    inputs = {
        "input_ids": ids,
        "mm_token_type_ids": (ids == IMAGE).int(),
        "pixel_values": picture(96, 3 * 2 * patch**2),
        "image_grid_thw": torch.tensor([[1, 8, 12]]),
    }
    return model(settings), inputs


GRID_TOWER = {"hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 64}


@family
def qwen2_vl():
    vision = {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}
    return _grid_thw(hf.Qwen2VLForConditionalGeneration, hf.Qwen2VLConfig, vision)


@family
def qwen2_5_vl():
    vision = {**GRID_TOWER, "window_size": 56, "fullatt_block_indexes": [1]}
    return _grid_thw(hf.Qwen2_5_VLForConditionalGeneration, hf.Qwen2_5_VLConfig, vision)


@family
def qwen3_vl():
    """With deepstack: vision features are added between the first decoder layers too."""
    vision = {**GRID_TOWER, "depth": 3, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64}
    text = {"rope_parameters": {**MROPE, "mrope_interleaved": True}}
    return _grid_thw(hf.Qwen3VLForConditionalGeneration, hf.Qwen3VLConfig, vision, text, patch=16)


@family
def qwen3_5():
    """Every other layer is linear attention, without heads that attend; the others gate their output."""
    text = {
        "num_hidden_layers": 4,
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "rope_parameters": {
            **MROPE,
            "mrope_section": [1, 1, 0],
            "mrope_interleaved": True,
            "partial_rotary_factor": 0.25,
        },
    }
    vision = {**GRID_TOWER, "num_position_embeddings": 64}
    return _grid_thw(hf.Qwen3_5ForConditionalGeneration, hf.Qwen3_5Config, vision, text, patch=16)


@family
def glm4v():
    text = {"rope_parameters": {**MROPE, "partial_rotary_factor": 1.0}}
    return _grid_thw(hf.Glm4vForConditionalGeneration, hf.Glm4vConfig, {**GRID_TOWER, "image_size": 112}, text)


def _rows_with_breaks(*rows: int) -> Tensor:
    """The Pixtral layout: each row of patches ends in a break, the last in an end token."""
    tokens = [token for width in rows for token in [*[IMAGE] * width, OPEN]]
    return around(*tokens[:-1], CLOSE)


@family
def mistral3():
    config = hf.Mistral3Config(
        vision_config=pixtral(),
        text_config=hf.MistralConfig(**TEXT),
        image_token_index=IMAGE,
        spatial_merge_size=2,
    )
    inputs = {
        "input_ids": _rows_with_breaks(3, 3),
        "pixel_values": picture(1, 3, 56, 84),
        "image_sizes": torch.tensor([[56, 84]]),
    }
    return hf.Mistral3ForConditionalGeneration(config), inputs


@family
def pixtral_llava():
    config = hf.LlavaConfig(
        vision_config=pixtral(),
        text_config=hf.MistralConfig(**TEXT),
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    inputs = {
        "input_ids": _rows_with_breaks(6, 6, 6, 6),
        "pixel_values": picture(1, 3, 56, 84),
        "image_sizes": torch.tensor([[56, 84]]),
    }
    return hf.LlavaForConditionalGeneration(config), inputs
