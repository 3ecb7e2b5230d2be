"""Tiny models whose every picture is one square, with their real processors."""

from typing import Any

import transformers as hf
from torch import nn

from tests.support.families.table import Built, family
from tests.support.models.parts import NO_HEAD_DIM, SMALL, TEXT, TOWER, siglip
from tests.support.tokenizer import byte_tokenizer

SQUARE = {"height": 56, "width": 56}
LLAMA = hf.LlamaConfig(**{**TEXT, "vocab_size": 300})


def tokenizer() -> Any:
    return byte_tokenizer(image_token="<image>", boi_token="<begin>", eoi_token="<end>")


@family("llava siglip 60")
def llava() -> Built:
    """On a SigLIP tower whose patches leave 4 of 60 pixels unseen, as SO400M leaves 6 of 384."""
    tokens = tokenizer()
    seen = hf.SiglipImageProcessorPil(size={"height": 60, "width": 60})
    processor = hf.LlavaProcessor(seen, tokens, patch_size=14, vision_feature_select_strategy="full")
    config = hf.LlavaConfig(
        vision_config=hf.SiglipVisionConfig(**{**SMALL, "image_size": 60}, vision_use_head=False),
        text_config=LLAMA,
        image_token_index=tokens.image_token_id,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    return hf.LlavaForConditionalGeneration(config), processor


@family("paligemma")
def paligemma() -> Built:
    tokens = byte_tokenizer(image_token="<image>")
    seen = hf.SiglipImageProcessorPil(size=SQUARE)
    seen.image_seq_length = 16
    processor = hf.PaliGemmaProcessor(seen, tokens)
    config = hf.PaliGemmaConfig(
        vision_config=siglip(projection_dim=64).to_dict(),
        text_config={**TEXT, "vocab_size": 1600, "model_type": "gemma"},
        image_token_index=processor.image_token_id,
        projection_dim=64,
        hidden_size=64,
    )
    return hf.PaliGemmaForConditionalGeneration(config), processor


@family("deepseek_vl")
def deepseek_vl() -> Built:
    tokens = tokenizer()
    processor = hf.DeepseekVLProcessor(hf.DeepseekVLImageProcessorPil(size=SQUARE), tokens, num_image_tokens=16)
    config = hf.DeepseekVLConfig(vision_config=siglip(), text_config=LLAMA, image_token_id=tokens.image_token_id)
    return hf.DeepseekVLForConditionalGeneration(config), processor


@family("deepseek_vl_hybrid")
def deepseek_vl_hybrid() -> Built:
    tokens = tokenizer()
    seen = hf.DeepseekVLHybridImageProcessorPil(size=SQUARE, high_res_size={"height": 128, "width": 128})
    processor = hf.DeepseekVLHybridProcessor(seen, tokens, num_image_tokens=16)
    sam = {
        **TOWER,
        "output_channels": 8,
        "image_size": 128,
        "global_attn_indexes": [1],
        "mlp_dim": 32,
        "window_size": 4,
    }
    config = hf.DeepseekVLHybridConfig(
        vision_config=siglip(), high_res_vision_config=sam, text_config=LLAMA, image_token_id=tokens.image_token_id
    )
    model = hf.DeepseekVLHybridForConditionalGeneration(config)
    nn.init.constant_(model.model.high_res_vision_alpha, 0.7)  # a gate that is closed in a fresh model
    return model, processor


@family("janus")
def janus() -> Built:
    tokens = tokenizer()
    processor = hf.JanusProcessor(hf.JanusImageProcessorPil(size=SQUARE), tokens, num_image_tokens=16)
    vision = {**SMALL, "projection_dim": 64, "depth": 2, "mlp_ratio": 2, "num_image_tokens": 16}
    codebook = {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1, "projection_dim": 32}
    config = hf.JanusConfig(
        vision_config=vision, text_config=LLAMA, vq_config=codebook, image_token_id=tokens.image_token_id
    )
    return hf.JanusForConditionalGeneration(config), processor


@family("fast_vlm")
def fast_vlm() -> Built:
    """With a ConvNeXt tower in place of timm's FastViT: another tower of convolutions, 32 pixels a cell."""
    tokens = tokenizer()
    seen = hf.LlavaImageProcessorPil(size={"shortest_edge": 96}, crop_size={"height": 96, "width": 96}, do_pad=True)
    processor = hf.LlavaProcessor(seen, tokens, patch_size=32, vision_feature_select_strategy="full")
    config = hf.FastVlmConfig(
        vision_config=hf.ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1]),
        text_config=hf.Qwen2Config(**{**NO_HEAD_DIM, "vocab_size": 300}),
        image_token_index=tokens.image_token_id,
    )
    config.vision_config.hidden_size = 16
    return hf.FastVlmForConditionalGeneration(config), processor


NAMES = ["llava siglip 60", "paligemma", "deepseek_vl", "deepseek_vl_hybrid", "janus", "fast_vlm"]
