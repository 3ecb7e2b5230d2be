"""Families that cut a picture into crops, and one that looks at it through cross-attention."""

import torch
import transformers as hf
from torch import nn

from .parts import (
    BOS,
    CLOSE,
    IMAGE,
    NO_HEAD_DIM,
    OPEN,
    PINPOINTS,
    SMALL,
    TEXT,
    TOWER,
    VIDEO,
    around,
    clip,
    family,
    picture,
    siglip,
)


@family
def llava_next():
    """Any resolution: a base crop, then the unpadded high-resolution rows, each ended by a newline vector."""
    return llava_next_of(hf.LlamaConfig(**TEXT))


def llava_next_of(text):
    """LLaVA-NeXT on a decoder."""
    config = hf.LlavaNextConfig(
        vision_config=clip(),
        text_config=text,
        image_token_index=IMAGE,
        image_grid_pinpoints=PINPOINTS,
        image_seq_length=16,
    )
    # 2 x 2 crops of a square picture: 16 base tokens, 8 rows of 8 patches and a newline
    inputs = {
        "input_ids": around(*[IMAGE] * (16 + 8 * 9)),
        "pixel_values": picture(1, 5, 3, 56, 56),
        "image_sizes": torch.tensor([[100, 100]]),
    }
    return hf.LlavaNextForConditionalGeneration(config), inputs


@family
def llava_onevision():
    config = hf.LlavaOnevisionConfig(
        vision_config=siglip(),
        text_config=hf.Qwen2Config(**NO_HEAD_DIM),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=PINPOINTS,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
    )
    # 100 x 80 pixels fill 8 x 6 of the 8 x 8 patches
    inputs = {
        "input_ids": around(*[IMAGE] * (16 + 8 * 7)),
        "pixel_values": picture(1, 5, 3, 56, 56),
        "image_sizes": torch.tensor([[100, 80]]),
        "batch_num_images": torch.tensor([1]),
    }
    return hf.LlavaOnevisionForConditionalGeneration(config), inputs


@family
def internvl():
    """Two tiles, shuffled from 4 x 4 patches to 2 x 2 tokens each."""
    vision = hf.InternVLVisionConfig(**{**SMALL, "image_size": [56, 56], "patch_size": [14, 14]})
    config = hf.InternVLConfig(
        vision_config=vision,
        text_config=hf.Qwen2Config(**NO_HEAD_DIM),
        image_token_id=IMAGE,
        image_seq_length=4,
        downsample_ratio=0.5,
    )
    inputs = {
        "input_ids": around(OPEN, *[IMAGE] * 8, CLOSE),
        "pixel_values": picture(2, 3, 56, 56),
    }  # 2 tiles
    return hf.InternVLForConditionalGeneration(config), inputs


def _idefics_tiles(model: type, config: type):
    """Two tiles of 4 tokens with a tag before each."""
    settings = config(vision_config=SMALL, text_config=hf.LlamaConfig(**TEXT), image_token_id=IMAGE, scale_factor=2)
    tile = [IMAGE] * 4
    inputs = {
        "input_ids": around(OPEN, CLOSE, *tile, OPEN, 154, *tile, OPEN),
        "pixel_values": picture(1, 2, 3, 56, 56),
        "pixel_attention_mask": torch.ones(1, 2, 56, 56, dtype=torch.bool),
    }
    return model(settings), inputs


@family
def idefics3():
    return _idefics_tiles(hf.Idefics3ForConditionalGeneration, hf.Idefics3Config)


@family
def smolvlm():
    return _idefics_tiles(hf.SmolVLMForConditionalGeneration, hf.SmolVLMConfig)


@family
def idefics2():
    """A resampler between tower and decoder, whose layers look much like decoder layers."""
    resampler = {
        "hidden_size": 64,
        "resampler_n_latents": 8,
        "resampler_depth": 2,
        "resampler_n_heads": 2,
        "resampler_head_dim": 16,
        "num_key_value_heads": 1,
    }
    config = hf.Idefics2Config(
        vision_config=SMALL,
        perceiver_config=resampler,
        text_config=hf.MistralConfig(**TEXT),
        image_token_id=IMAGE,
    )
    inputs = {
        "input_ids": around(OPEN, *[IMAGE] * 8, OPEN),
        "pixel_values": picture(1, 1, 3, 56, 56),
        "pixel_attention_mask": torch.ones(1, 1, 56, 56, dtype=torch.bool),
    }
    return hf.Idefics2ForConditionalGeneration(config), inputs


@family
def mllama():
    """Cross-attention: the second of three layers attends to the picture; no key of the others is visual."""
    vision = {
        **TOWER,
        "num_global_layers": 1,
        "attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
        "vision_output_dim": 64,
        "intermediate_layers_indices": [0],
        "max_num_tiles": 2,
        "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
    }
    config = hf.MllamaConfig(
        vision_config=vision,
        text_config={**NO_HEAD_DIM, "cross_attention_layers": [1]},
        image_token_index=IMAGE,
    )
    ids = torch.tensor([[BOS, 5, 6, 7, IMAGE, 20, 21, 22]])
    looks = torch.zeros(1, ids.shape[1], 1, 2, dtype=torch.long)
    looks[:, 4:, :, 0] = 1  # from the image token on, at the first tile
    inputs = {
        "input_ids": ids,
        "cross_attention_mask": looks,
        "pixel_values": picture(1, 1, 2, 3, 56, 56),
        "aspect_ratio_ids": torch.tensor([[1]]),
        "aspect_ratio_mask": torch.tensor([[[1, 0]]]),
    }
    model = hf.MllamaForConditionalGeneration(config)
    for name, gate in model.named_parameters():  # closed in a fresh model, which would hide the picture
        if "gate" in name and gate.numel() == 1:
            nn.init.constant_(gate, 0.7)
    return model, inputs
