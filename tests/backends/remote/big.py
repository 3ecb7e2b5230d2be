"""Models of real size without weights: what a user of LLaVA-1.5-7B or Qwen2.5-VL has before sending."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaProcessor, Qwen2_5_VLConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from lmm_lens import Lens
from lmm_lens.backends.nnsight.wrap import _NoProcessor, opened
from lmm_lens.bundled.shapes.processor import CHAT_TEMPLATE, build_tokenizer


def llava_1_5_7b(folder: Path, remote: str) -> Lens:
    """LLaVA-1.5-7B's geometry with the words of shapes-llava."""
    tokenizer = build_tokenizer()
    tokenizer.model_max_length = 4096
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )
    text = LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        vocab_size=len(tokenizer),
    )
    LlavaConfig(
        architectures=["LlavaForConditionalGeneration"],
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="default",
        vision_feature_layer=-2,
    ).save_pretrained(folder)
    LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
    return Lens.from_pretrained(str(folder), backend="nnsight", remote=remote)


def qwen2_5_vl_7b(folder: Path, remote: str) -> Lens:
    """Qwen2.5-VL-7B's geometry; its processor needs torchvision, so prompts are made of tensors."""
    text = {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
    }
    vision = {"out_hidden_size": 3584, "hidden_size": 1280, "intermediate_size": 3420, "tokens_per_second": 2}
    config = Qwen2_5_VLConfig(
        architectures=["Qwen2_5_VLForConditionalGeneration"], text_config=text, vision_config=vision
    )
    config.save_pretrained(folder)
    return Lens(opened(str(folder), _NoProcessor()), None, backend="nnsight", remote=remote)


def qwen_inputs(lens: Lens, seed: int) -> dict[str, Tensor]:
    """A noise photo of 336 x 336 as Qwen2.5-VL takes it: 24 x 24 flattened patches of two equal frames."""
    config, n_words = lens.adapter.config, 8
    photo = normalized(np.asarray(noise(seed)))
    patches = photo.reshape(3, 12, 2, 14, 12, 2, 14).permute(1, 4, 2, 5, 0, 3, 6)  # row col row col channel y x
    frames = patches[..., None, :, :].expand(*patches.shape[:5], 2, 14, 14)  # two frames behind each channel
    image = [config.vision_start_token_id, *[config.image_token_id] * 144, config.vision_end_token_id]
    ids = torch.tensor([[*range(100, 100 + n_words), *image, *range(200, 200 + n_words)]])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == config.image_token_id).int(),
        "pixel_values": frames.reshape(576, 1176),
        "image_grid_thw": torch.tensor([[1, 24, 24]]),
    }


def normalized(pixels: np.ndarray) -> Tensor:
    """CLIP's mean and deviation, per channel; Float[3, height, width]."""
    mean, deviation = (
        torch.tensor([0.48145466, 0.4578275, 0.40821073]),
        torch.tensor([0.26862954, 0.26130258, 0.275777]),
    )
    return (torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255 - mean[:, None, None]) / deviation[:, None, None]


def noise(seed: int, size: int = 336) -> Image.Image:
    """A photo without anything that a compressor could use."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))
