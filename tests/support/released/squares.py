"""Checkpoints that make one square of a picture."""

from typing import Any

import transformers as hf

from tests.support.released.entry import Released, edge, everywhere, middle, siglip

CLIP_336 = {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14}
LLAVA: tuple[Any, ...] = (
    hf.LlavaImageProcessorPil,
    {**middle(336), "do_pad": False},
    hf.LlavaProcessor,
    {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    everywhere((24, 24)),
)


class CountedSiglip(hf.SiglipImageProcessorPil):
    """Which knows how many tokens a picture is, as the checkpoint's settings say."""

    def __init__(self, image_seq_length: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.image_seq_length = image_seq_length


def paligemma(side: int) -> Released:
    """Of one of its three resolutions."""
    n = side // 14
    return Released(
        "paligemma",
        {"vision_config": siglip(side, num_image_tokens=n**2, projection_dim=32), "projection_dim": 32},
        CountedSiglip,
        {"size": edge(side), "image_seq_length": n**2},
        hf.PaliGemmaProcessor,
        {},
        everywhere((n, n)),
        named={"image_token": "<image>"},
    )


def deepseek(name: str, images: type, config: dict[str, Any], **own: Any) -> Released:
    """DeepSeek-VL and Janus: 24 x 24 patches of 16."""
    return Released(
        name,
        {"vision_config": {"image_size": 384, "patch_size": 16, **config}},
        images,
        {"size": edge(384), **own},
        {"deepseek_vl": hf.DeepseekVLProcessor, "janus": hf.JanusProcessor}[name],
        {"num_image_tokens": 576},
        everywhere((24, 24)),
        named={"image_token": "<image>", "boi_token": "<begin>", "eoi_token": "<end>"},
    )


GEMMA = {"image_token": "<soft>", "boi_token": "<begin>", "eoi_token": "<end>"}
SQUARES = {
    "llava-hf/llava-1.5-7b-hf": Released(
        "llava", {"vision_config": CLIP_336, "vision_feature_select_strategy": "default"}, *LLAVA
    ),
    "llava-hf/vip-llava-7b-hf": Released(
        "vipllava", {"vision_config": CLIP_336, "vision_feature_layers": [-2, -1]}, *LLAVA
    ),
    "google/paligemma-3b-mix-224": paligemma(224),
    "google/paligemma2-10b-pt-448": paligemma(448),
    "google/paligemma2-10b-pt-896": paligemma(896),
    "google/gemma-3-4b-it": Released(
        "gemma3",
        {"vision_config": siglip(896), "mm_tokens_per_image": 256},
        hf.Gemma3ImageProcessorPil,
        {"size": edge(896)},
        hf.Gemma3Processor,
        {"image_seq_length": 256},
        everywhere((16, 16)),  # 64 x 64 patches, pooled 4 x 4
        image="<soft>",
        named=GEMMA,
    ),
    "deepseek-community/deepseek-vl-1.3b-chat": deepseek("deepseek_vl", hf.DeepseekVLImageProcessorPil, {}),
    "deepseek-community/Janus-Pro-1B": deepseek(
        "janus", hf.JanusImageProcessorPil, {"num_image_tokens": 576, "projection_dim": 32}
    ),
}
