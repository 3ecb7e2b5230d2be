"""Families that make one run of tokens of each picture."""

from typing import Any

import torch
import transformers as hf

from .parts import BOS, CLOSE, IMAGE, OPEN, TEXT, VIDEO, around, clip, family, picture, siglip


@family
def llava():
    config = hf.LlavaConfig(
        vision_config=clip(), text_config=hf.LlamaConfig(**TEXT), image_token_index=IMAGE, image_seq_length=16
    )
    inputs = {"input_ids": around(*[IMAGE] * 16), "pixel_values": picture(1, 3, 56, 56)}
    return hf.LlavaForConditionalGeneration(config), inputs


@family
def vipllava():
    config = hf.VipLlavaConfig(
        vision_config=clip(),
        text_config=hf.LlamaConfig(**TEXT),
        image_token_index=IMAGE,
        vision_feature_layers=[-1, -2],
    )
    inputs = {"input_ids": around(*[IMAGE] * 16), "pixel_values": picture(1, 3, 56, 56)}
    return hf.VipLlavaForConditionalGeneration(config), inputs


@family
def video_llava():
    config = hf.VideoLlavaConfig(
        vision_config=clip(),
        text_config=hf.LlamaConfig(**TEXT),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
    )
    inputs = {"input_ids": around(*[IMAGE] * 16), "pixel_values_images": picture(1, 3, 56, 56)}
    return hf.VideoLlavaForConditionalGeneration(config), inputs


@family
def gemma3():
    """Two sliding-window layers, the window shorter than the prompt, and a full one."""
    layers = ["sliding_attention", "sliding_attention", "full_attention"]
    text = {**TEXT, "query_pre_attn_scalar": 16, "sliding_window": 8, "layer_types": layers}
    config = hf.Gemma3Config(
        text_config=text,
        vision_config=siglip().to_dict(),
        mm_tokens_per_image=4,
        image_token_index=IMAGE,
        boi_token_index=154,  # not those of the prompts: in these tests every token but the image's is text
        eoi_token_index=155,
    )
    ids = around(OPEN, *[IMAGE] * 4, CLOSE)
    inputs = {
        "input_ids": ids,
        "token_type_ids": (ids == IMAGE).long(),
        "pixel_values": picture(1, 3, 56, 56),
    }
    model = hf.Gemma3ForConditionalGeneration(config)
    model.model.multi_modal_projector.mm_input_projection_weight.normal_(std=0.02)  # zero in a fresh model
    return model, inputs


def _paligemma(text: dict[str, Any], **options: Any):
    """The image comes first, then the beginning-of-sequence token; the whole prompt attends both ways."""
    config = hf.PaliGemmaConfig(
        vision_config=siglip(projection_dim=64).to_dict(),
        text_config={**TEXT, **text},
        image_token_index=IMAGE,
        projection_dim=64,
        hidden_size=64,
    )
    ids = torch.tensor([[IMAGE] * 16 + [BOS, 5, 6, 7, 20, 21]])
    inputs = {
        "input_ids": ids,
        "token_type_ids": torch.zeros_like(ids),
        "pixel_values": picture(1, 3, 56, 56),
    }
    return hf.PaliGemmaForConditionalGeneration._from_config(config, **options), inputs


@family
def paligemma():
    return _paligemma({"model_type": "gemma"})


@family
def paligemma2():
    """Gemma 2: soft-capped attention logits, which the fused kernel cannot compute, and a sliding window."""
    text = {
        "model_type": "gemma2",
        "query_pre_attn_scalar": 16,
        "attn_logit_softcapping": 5.0,
        "sliding_window": 16,
    }
    return _paligemma(text, attn_implementation="eager")
