"""Checkpoints that keep a picture's shape: one grid of patches, or crops put together into one."""

from typing import Any

import transformers as hf
from transformers.models.glm4v.video_processing_glm4v import Glm4vVideoProcessor
from transformers.models.glm46v.video_processing_glm46v import Glm46VVideoProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from tests.support.models.parts import MROPE
from tests.support.released.entry import BROAD, TINY, WIDE, Released, edge, middle, siglip
from tests.support.released.squares import CLIP_336, LLAVA

PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
SIXES = [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]
VISION = ("<|vision_start|>", "<|vision_end|>", "<|video_pad|>")

TURNED = {"text_config": {"rope_parameters": {**MROPE, "mrope_section": [1, 1, 2]}}}  # for heads of a tiny model
TEXTS: dict[str, Any] = {
    "qwen3_vl": {},
    "qwen3_5": {"text_config": {"layer_types": ["linear_attention", "full_attention"]}},
}


def pixels(least: int, most: int, patch: int = 14, merge: int = 2) -> dict[str, Any]:
    """Min and max pixels, as settings have them."""
    return {"size": {"shortest_edge": least, "longest_edge": most}, "patch_size": patch, "merge_size": merge}


def qwen(name: str, processor: type, films: type, preprocessor: dict[str, Any], seen: dict[Any, Any]) -> Released:
    """Sides rounded to whole tokens of 2 x 2 patches, and scaled where the picture is too small or too large."""
    patch = {"patch_size": preprocessor["patch_size"], "spatial_merge_size": 2}
    images: type = hf.Qwen2VLImageProcessorPil
    return Released(
        name,
        {"vision_config": patch, **TEXTS.get(name, TURNED)},
        images,
        preprocessor,
        processor,
        {},
        seen,
        image="<|image_pad|>",
        specials=VISION,
        films=films,
    )


def glm(name: str, images: type, processor: type, films: type) -> Released:
    """As Qwen 2 does, but a picture counts as two frames of a film: at least 8 tokens of 28 x 28, 3 x 3 of a square."""
    return Released(
        name,
        {"vision_config": {"patch_size": 14, "spatial_merge_size": 2, "image_size": 336}, **TURNED},
        images,
        pixels(12544, 9633792),
        processor,
        {},
        {**BY_28, TINY: ((3, 3),)},
        image="<|image|>",
        specials=("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>", "<|video|>"),
        films=films,
    )


QWEN_2, QWEN_3 = pixels(3136, 12845056), pixels(65536, 16777216, patch=16)
# 640 / 28 is 22.9 and 480 / 28 is 17.1; 300 / 28 is 10.7 and 1200 / 28 is 42.9
BY_28: dict[Any, Any] = {WIDE: ((17, 23),), BROAD: ((11, 43),)}
SMALL_28 = {**BY_28, TINY: ((2, 2),)}  # 3136 pixels at least, 2 x 2 tokens of 28 x 28
SMALL_32: dict[Any, Any] = {WIDE: ((15, 20),), BROAD: ((9, 38),), TINY: ((8, 8),)}  # 65536, 8 x 8 tokens of 32 x 32
GLM_46 = hf.Glm46VImageProcessorPil, hf.Glm46VProcessor, Glm46VVideoProcessor
MISTRAL_3 = {"vision_config": {"model_type": "pixtral", "image_size": 1540, "patch_size": 14}, "spatial_merge_size": 2}
PIXTRAL_14 = {"size": {"longest_edge": 1540}, "patch_size": 14}
GRIDS = {
    "llava-hf/llava-v1.6-mistral-7b-hf": Released(
        "llava_next",
        {"vision_config": CLIP_336, "image_grid_pinpoints": PINPOINTS, "vision_feature_select_strategy": "default"},
        hf.LlavaNextImageProcessorPil,
        {**middle(336), "image_grid_pinpoints": PINPOINTS},
        hf.LlavaNextProcessor,
        LLAVA[3],
        # 2 x 2 crops, of whose 48 rows 6 above and 6 below are padding; 1 x 3, of whose 24 rows 3 and 3
        {WIDE: ((24, 24), (36, 48)), BROAD: ((24, 24), (18, 72)), (672, 672): ((24, 24), (48, 48))},
    ),
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": Released(
        "llava_onevision",
        {
            "vision_config": siglip(384),
            "image_grid_pinpoints": SIXES,
            "vision_feature_select_strategy": "full",
            "vision_aspect_ratio": "anyres_max_9",
        },
        hf.LlavaOnevisionImageProcessorPil,
        {"size": edge(384), "image_grid_pinpoints": SIXES},
        hf.LlavaOnevisionProcessor,
        {"num_image_tokens": 729, "vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_9"},
        # of the largest, 6 x 6 crops of 27 x 27 patches, shrunk to what 9 crops hold
        {WIDE: ((27, 27), (40, 54)), BROAD: ((27, 27), (27, 108)), (2304, 2304): ((27, 27), (81, 81))},
        specials=("<video>",),
        films=hf.LlavaOnevisionVideoProcessor,
    ),
    "Qwen/Qwen2-VL-7B-Instruct": qwen("qwen2_vl", hf.Qwen2VLProcessor, Qwen2VLVideoProcessor, QWEN_2, SMALL_28),
    "Qwen/Qwen2.5-VL-7B-Instruct": qwen("qwen2_5_vl", hf.Qwen2_5_VLProcessor, Qwen2VLVideoProcessor, QWEN_2, SMALL_28),
    "Qwen/Qwen3-VL-8B-Instruct": qwen("qwen3_vl", hf.Qwen3VLProcessor, Qwen3VLVideoProcessor, QWEN_3, SMALL_32),
    "Qwen/Qwen3.5-27B": qwen("qwen3_5", hf.Qwen3VLProcessor, Qwen3VLVideoProcessor, QWEN_3, SMALL_32),
    "zai-org/GLM-4.1V-9B-Thinking": glm("glm4v", hf.Glm4vImageProcessorPil, hf.Glm4vProcessor, Glm4vVideoProcessor),
    "zai-org/GLM-4.6V-Flash": glm("glm46v", *GLM_46),
    "zai-org/GLM-OCR": glm("glm_ocr", *GLM_46),
    "mistral-community/pixtral-12b": Released(
        "llava",
        {
            "vision_config": {"model_type": "pixtral", "image_size": 1024, "patch_size": 16},
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
        },
        hf.PixtralImageProcessorPil,
        {"size": {"longest_edge": 1024}, "patch_size": 16},
        hf.PixtralProcessor,
        {"patch_size": 16, "spatial_merge_size": 1},
        {WIDE: ((30, 40),), BROAD: ((16, 64),)},
        image="[IMG]",
        specials=("[IMG_BREAK]", "[IMG_END]"),
    ),
    "mistralai/Mistral-Small-3.1-24B-Instruct-2503": Released(
        "mistral3",
        MISTRAL_3,
        hf.PixtralImageProcessorPil,
        PIXTRAL_14,
        hf.PixtralProcessor,
        {"patch_size": 14, "spatial_merge_size": 2},
        {WIDE: ((18, 23),), BROAD: ((11, 43),)},  # rounded up
        image="[IMG]",
        specials=("[IMG_BREAK]", "[IMG_END]"),
    ),
    "lightonai/LightOnOCR-2-1B": Released(
        "lighton_ocr",
        MISTRAL_3,
        hf.PixtralImageProcessorPil,
        PIXTRAL_14,
        hf.LightOnOcrProcessor,
        {"patch_size": 14, "spatial_merge_size": 2},
        {WIDE: ((17, 23),), BROAD: ((11, 43),)},  # 35 rows of patches, the last of which has none to be merged with
        image="<|image_pad|>",
        named={
            "image_token": "<|image_pad|>",
            "image_break_token": "<|vision_pad|>",
            "image_end_token": "<|vision_end|>",
        },
    ),
}
