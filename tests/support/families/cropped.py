"""Tiny models that write a picture whole and in crops, in ways of their own, with their real processors."""

from typing import Any

import transformers as hf

from tests.support.classes.table import SETTINGS
from tests.support.families.small import small

NAMES = [
    "molmo2",
    "perception_lm",
    "step3p7",
    "minicpmv4_6",
    "granite4_vision",
    "granite_docling",
    "minicpmv4_7",
    "qianfan_ocr",
    "minicpm_ocr",
    "unlimited_ocr",
]
MOLMO = [
    "<im_start>",
    "<low_res_im_start>",
    "<im_end>",
    "<im_col>",
    "<|video|>",
    "<frame_start>",
    "<frame_end>",
    "<|image|>",
]


@small("molmo2", *MOLMO, image="<im_patch>", image_token="<|image|>")
def molmo2(name: str, tokens: Any) -> tuple[dict[str, Any], Any]:
    """Crops of 5 x 5 patches, of which one on each side overlaps; 2 x 2 patches a token, or what is left."""
    sizes = {"size": {"height": 70, "width": 70}, "overlap_margins": [1, 1], "max_crops": 4, "patch_size": 14}
    processor = hf.Molmo2Processor(hf.Molmo2ImageProcessor(**sizes), hf.Molmo2VideoProcessor(), tokens)
    vision = {**SETTINGS[name]["vision_config"], "image_size": [70, 70], "num_position_embeddings": 25}
    names = {"image_start": "<im_start>", "low_res_image_start": "<low_res_im_start>", "image_end": "<im_end>"}
    ids = {f"{part}_token_id": tokens.convert_tokens_to_ids(token) for part, token in names.items()}
    return {"vision_config": vision, **ids}, processor


@small("perception_lm", image="<|image|>", video="<|video|>", image_token="<|image|>", video_token="<|video|>")
def perception_lm(name: str, tokens: Any) -> tuple[dict[str, Any], Any]:
    """On a CLIP tower, since timm is not installed here."""
    seen = hf.PerceptionLMImageProcessor(tile_size=56, max_num_tiles=4, size={"height": 56, "width": 56})
    films = hf.PerceptionLMVideoProcessor(size={"height": 56, "width": 56})
    return {}, hf.PerceptionLMProcessor(films, seen, tokens, patch_size=14, pooling_ratio=2)


STEP = ["<patch_start>", "<patch_end>", "<patch_newline>", "<im_start>", "<im_end>"]


@small("step3p7", *STEP, image="<im_patch>")
def step3p7(name: str, tokens: Any) -> tuple[dict[str, Any], Any]:
    """The whole in 2 x 2 tokens, crops in one each."""
    size = {"height": 112, "width": 112}
    seen = hf.Step3p7ImageProcessor(size=size, patch_size=56, max_image_size=400)
    return {"vision_config": {"image_size": 112, "max_position_embeddings": 64}}, hf.Step3p7Processor(seen, tokens)


MINI = {f"{what}_{end}_token": f"<{what}_{end}>" for what in ("image", "slice", "image_id") for end in ("start", "end")}


@small("minicpmv4_6", image="<image>", video="<video>", image_token="<image>", video_token="<video>", **MINI)
@small("minicpm_ocr", image="<image>", video="<video>", image_token="<image>", video_token="<video>", **MINI)
@small("minicpmv4_7", image="<image>", video="<video>", image_token="<image>", video_token="<video>", **MINI)
def minicpmv(name: str, tokens: Any) -> tuple[dict[str, Any], Any]:
    """A token covers 56 x 56 pixels, or 28 x 28."""
    sizes = {"scale_resolution": 112, "patch_size": 14, "max_slice_nums": 4}
    kinds = {"minicpmv4_6": hf.MiniCPMV4_6Processor, "minicpmv4_7": hf.MiniCPMV4_7Processor}
    if name == "minicpm_ocr":
        parts = {
            "image_processor": hf.MiniCPMOcrImageProcessor(**sizes),
            "video_processor": hf.MiniCPMOcrVideoProcessor(),
        }
        return {}, hf.MiniCPMOcrProcessor(**parts, tokenizer=tokens)
    parts = {
        "image_processor": hf.MiniCPMV4_6ImageProcessorPil(**sizes),
        "video_processor": hf.MiniCPMV4_6VideoProcessor(),
    }
    return {}, kinds[name](**parts, tokenizer=tokens)


@small("granite4_vision", image="<image>", image_token="<image>")
def granite4_vision(name: str, tokens: Any) -> tuple[dict[str, Any], Any]:
    """Crops of 4 x 4 patches, of which windows of 2 x 2 become a token."""
    pinpoints = SETTINGS[name]["image_grid_pinpoints"]
    sizes = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}, "image_grid_pinpoints": pinpoints}
    seen = hf.LlavaNextImageProcessorPil(**sizes)
    chosen = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1, "downsample_rate": "1/2"}
    return {}, hf.Granite4VisionProcessor(seen, tokens, patch_size=14, **chosen)


DOCLING = ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
DOCLING += [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]


@small("granite_docling", *DOCLING, image="<image>", image_token="<image>")
def granite_docling(name: str, tokens: Any) -> tuple[dict[str, Any], Any]:
    """Crops of 4 x 4 patches, merged 2 x 2."""
    seen = hf.GraniteDoclingImageProcessorPil(size={"height": 56, "width": 56}, max_patches=4)
    return {}, hf.GraniteDoclingProcessor(seen, tokens, image_seq_len=4)


QIANFAN = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}


@small("qianfan_ocr", image="<IMG_CONTEXT>", **QIANFAN)
def qianfan_ocr(name: str, tokens: Any) -> tuple[dict[str, Any], Any]:
    """Crops of 4 x 4 patches, merged 2 x 2."""
    seen = hf.GotOcr2ImageProcessorPil(size={"height": 56, "width": 56}, min_patches=1, max_patches=4)
    return {}, hf.QianfanOCRProcessor(seen, tokens, image_seq_length=4)


@small("unlimited_ocr", image="<image>", image_token="<image>")
def unlimited_ocr(name: str, tokens: Any) -> tuple[dict[str, Any], Any]:
    """The whole in 3 x 3 tokens of 64 pixels, crops in 2 x 2."""
    seen = hf.UnlimitedOcrImageProcessor(size={"height": 192, "width": 192}, tile_size=128, max_patches=4)
    return {}, hf.UnlimitedOcrProcessor(seen, tokens)
