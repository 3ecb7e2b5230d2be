"""Classes that cut pictures into crops."""

import torch
from torch import nn

from tests.support.classes.table import run_of, tiny
from tests.support.models.parts import CLOSE, IMAGE, OPEN, PINPOINTS, Inputs, around, clip, picture

SAM = {
    "global_attn_indexes": [1],
    "mlp_dim": 32,
    "output_channels": 8,
    "patch_size": 16,
    "window_size": 4,
    "image_size": 128,
    "initializer_range": 0.02,
    "downsample_channels": [16, 32],
}
EXPERTS = {
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "mlp_layer_types": ["dense", "sparse"],
    "num_key_value_heads": 4,
}


@tiny(
    "deepseek_ocr2",
    text_config=EXPERTS,
    vision_config={"sam_config": {**SAM, "scale": 64}, "encoder_config": {"layer_types": ["full_attention"] * 2}},
)
def deepseek_ocr2(model: nn.Module) -> Inputs:
    """A hundred and forty-four learned queries for each crop and for the whole, then a separator."""
    return {
        "input_ids": run_of(144 + 144 + 1),
        "pixel_values": picture(1, 3, 128, 128),
        "pixel_values_local": picture(1, 3, 128, 128),
        "num_local_patches": torch.tensor([1]),
    }


@tiny(
    "unlimited_ocr",
    text_config=EXPERTS,
    vision_config={"sam_config": SAM, "encoder_config": {"patch_size": 64, "image_size": 128}},
)
def unlimited_ocr(model: nn.Module) -> Inputs:
    return {"input_ids": run_of(2 * 3 + 1), "pixel_values": picture(1, 3, 128, 128)}


@tiny("step3p7", text_config={"sliding_window": 16, "mlp_layer_types": ["dense", "sparse"]})
def step3p7(model: nn.Module) -> Inputs:
    return {"input_ids": around(OPEN, IMAGE, CLOSE), "pixel_values": picture(1, 3, 56, 56)}


@tiny("granite_docling", vision_config={"deepstack_visual_indexes": [0], "scale_factor": 2})
def granite_docling(model: nn.Module) -> Inputs:
    tile = [IMAGE] * 4
    return {
        "input_ids": around(OPEN, *tile, CLOSE, *tile),
        "pixel_values": picture(1, 2, 3, 56, 56),
        "pixel_attention_mask": torch.ones(1, 2, dtype=torch.bool),
    }


@tiny("qianfan_ocr", vision_config={"image_size": [56, 56], "patch_size": [14, 14]})
def qianfan_ocr(model: nn.Module) -> Inputs:
    return {"input_ids": run_of(8), "pixel_values": picture(2, 3, 56, 56)}


@tiny(
    "granite4_vision",
    vision_config={**clip().to_dict(), "hidden_size": 64},
    qformer_config={"encoder_hidden_size": 64, "num_hidden_layers": 1},
    downsample_rate="1/2",
    deepstack_layer_map=[[-1, 0]],
    spatial_target_layers=[1],
    image_grid_pinpoints=PINPOINTS,
)
def granite4_vision(model: nn.Module) -> Inputs:
    return {
        "input_ids": run_of(4 + 4 * 5),
        "pixel_values": picture(1, 5, 3, 56, 56),
        "image_sizes": torch.tensor([[100, 100]]),
    }


MINI = {
    "text_config": {"layer_types": ["linear_attention", "full_attention"]},
    "vision_config": {"image_size": 112},
    "insert_layer_id": 0,
}


@tiny("minicpmv4_6", **MINI)
@tiny("minicpmv4_7", **MINI)
def minicpm(model: nn.Module) -> Inputs:
    return {
        "input_ids": run_of(2),
        "pixel_values": picture(1, 3, 14, 14 * 32),
        "target_sizes": torch.tensor([[4, 8]], dtype=torch.int),
    }


@tiny("minicpm_ocr", **MINI)
def minicpm_ocr(model: nn.Module) -> Inputs:
    return {**minicpm(model), "input_ids": run_of(8)}


@tiny(
    "molmo2",
    image_patch_id=IMAGE,
    adapter_config={"vision_feature_layer": [1, 0]},
    vision_config={"image_size": [56, 56], "num_position_embeddings": 16, "num_key_value_heads": 4},
    text_config={"additional_vocab_size": 8, "rope_scaling_layers": [0]},
)
def molmo2(model: nn.Module) -> Inputs:
    whole = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    crop = [[index + 16 for index in four] for four in whole]
    return {
        "input_ids": around(OPEN, *[IMAGE] * 4, CLOSE, OPEN, *[IMAGE] * 4, CLOSE),
        "pixel_values": picture(2, 16, 588),
        "image_token_pooling": torch.tensor(whole + crop),
        "image_grids": torch.tensor([[2, 2, 2, 2]]),
        "image_num_crops": torch.tensor([2]),
    }


@tiny("perception_lm", vision_config={**clip().to_dict(), "model_args": {"embed_dim": 32}}, projector_pooling_ratio=2)
def perception_lm(model: nn.Module) -> Inputs:
    return {"input_ids": run_of(8), "pixel_values": picture(1, 2, 3, 56, 56)}


INKLING = {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8}


@tiny(
    "inkling_mm_model",
    text_config=INKLING,
    vision_config={"n_layers": 2, "patch_size": 8},
    audio_config={"mel_vocab_size": 8},
)
def inkling(model: nn.Module) -> Inputs:
    return {"input_ids": run_of(6), "pixel_values": picture(6, 2, 8, 8, 3)}


MAMBA = {
    "layers_block_type": ["linear_attention", "full_attention"],
    "ssm_state_size": 8,
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "n_groups": 2,
}


@tiny(
    "nemotron_h_omni",
    text_config=MAMBA,
    vision_config={"max_img_size": 112, "patch_dim": 588, "video_patch_dim": 1176},
    vision_hidden_size=32,
)
def nemotron(model: nn.Module) -> Inputs:
    return {"input_ids": run_of(6), "pixel_values": picture(24, 588), "image_grid_hw": torch.tensor([[4, 6]])}


@tiny(
    "gemma4_unified",
    text_config={"layer_types": ["sliding_attention", "full_attention"]},
    vision_config={
        "model_type": "gemma4_unified_vision",
        "patch_size": 4,
        "pooling_kernel_size": 2,
        "mm_embed_dim": 32,
        "mm_posemb_size": 16,
        "output_proj_dims": 32,
    },
)
def gemma4_unified(model: nn.Module) -> Inputs:
    places = torch.tensor([[[x, y] for y in range(2) for x in range(3)]])
    return {"input_ids": run_of(6), "pixel_values": picture(1, 6, 192), "image_position_ids": places}
