"""Those that took over the Qwen layout: tiny models of each with their real processors, from their own defaults."""

from types import SimpleNamespace
from typing import Any

import transformers as hf
from transformers.models.cohere_compass.video_processing_cohere_compass import CohereCompassVideoProcessor
from transformers.models.cosmos3_edge.video_processing_cosmos3_edge import Cosmos3EdgeVideoProcessor
from transformers.models.glm5_next.video_processing_glm5_next import Glm5NextVideoProcessor
from transformers.models.glm46v.video_processing_glm46v import Glm46VVideoProcessor
from transformers.models.glmga.video_processing_glmga import GlmgaVideoProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from tests.support.classes.shrunk import tiny_model
from tests.support.classes.table import SETTINGS
from tests.support.families.table import Built
from tests.support.tokenizer import byte_tokenizer


def placeholders(image: str, video: str, around: dict[str, tuple[str, str]], **named: str) -> SimpleNamespace:
    """Placeholders, the markers around them, and what the tokenizer has to know by name."""
    return SimpleNamespace(image=image, video=video, around=around, named=named)


def both(start: str, end: str) -> dict[str, tuple[str, str]]:
    return {"image": (start, end), "video": (start, end)}


PADS = "<|image_pad|>", "<|video_pad|>"
QWEN = placeholders(*PADS, both("<|vision_start|>", "<|vision_end|>"))
GLM_AROUND = {kind: (f"<|begin_of_{kind}|>", f"<|end_of_{kind}|>") for kind in ("image", "video")}
GLM = placeholders("<|image|>", "<|video|>", GLM_AROUND)
COMPASS = placeholders("<|IMAGE_PAD|>", "<|VIDEO_PAD|>", both("<|VISION_START|>", "<|VISION_END|>"))
SAID = {f"{kind}_token": f"<|{kind}_pad|>" for kind in ("image", "video", "audio")}
ENDS = {f"{what}_{end}_token": f"<|{what}_{end}|>" for what in ("vision", "audio") for end in ("bos", "eos")}
OMNI = placeholders(*PADS, both("<|vision_bos|>", "<|vision_eos|>"), **SAID, **ENDS)

QWEN_2 = hf.Qwen2VLImageProcessorPil, Qwen2VLVideoProcessor
QWEN_3 = hf.Qwen2VLImageProcessorPil, Qwen3VLVideoProcessor
GLM_46 = hf.Glm46VImageProcessorPil, Glm46VVideoProcessor
GLM_GA = hf.GlmgaImageProcessorPil, GlmgaVideoProcessor
GLM_5 = hf.Glm5NextImageProcessorPil, Glm5NextVideoProcessor
EDGE = hf.Cosmos3EdgeImageProcessorPil, Cosmos3EdgeVideoProcessor
COHERE = hf.CohereCompassImageProcessorPil, CohereCompassVideoProcessor
# tokens, processor, image and video processor
KIN: dict[str, tuple[Any, ...]] = {
    "cohere_compass": (COMPASS, hf.CohereCompassProcessor, *COHERE),
    "cosmos3_edge": (QWEN, hf.Cosmos3EdgeProcessor, *EDGE),
    "cosmos3_omni": (QWEN, hf.Qwen3VLProcessor, *QWEN_3),
    "exaone4_5": (QWEN, hf.Exaone4_5_Processor, *QWEN_2),
    "glm5_next": (GLM, hf.Glm5NextProcessor, *GLM_5),
    "glm_ocr": (GLM, hf.Glm46VProcessor, *GLM_46),
    "glmga": (GLM, hf.Glm46VProcessor, *GLM_GA),
    "hyperclovax_vision_v2": (QWEN, hf.HyperCLOVAXVisionV2Processor, *QWEN_2),
    "lfm3_vl": (QWEN, hf.Lfm3VlProcessor, *QWEN_3),
    "qwen2_5_omni_thinker": (OMNI, hf.Qwen2_5OmniProcessor, *QWEN_2),
    "qwen3_omni_moe_thinker": (OMNI, hf.Qwen3OmniMoeProcessor, *QWEN_2),
    "qwen4_exp": (QWEN, hf.Qwen3VLProcessor, *QWEN_3),
}


def build_kin(name: str, template: str) -> Built:
    """A token covers 28 x 28 pixels."""
    tokens, processor, image_processor, video_processor = KIN[name]
    brackets = sorted({marker for pair in tokens.around.values() for marker in pair})
    tokenizer = byte_tokenizer(tokens.image, tokens.video, *brackets, "<|user|>", "<|assistant|>", **tokens.named)
    id_of = tokenizer.convert_tokens_to_ids
    known = hf.CONFIG_MAPPING[name]().to_dict()
    ids = {"image_token_id": tokens.image, "image_token_index": tokens.image}
    ids |= {"video_token_id": tokens.video, "video_token_index": tokens.video}
    for kind, (start, end) in tokens.around.items():
        ids |= {f"{kind}_start_token_id": start, f"{kind}_end_token_id": end}
        ids |= {"vision_start_token_id": start, "vision_end_token_id": end}
    own = {**SETTINGS[name], **{setting: id_of(token) for setting, token in ids.items() if setting in known}}
    if tokens is OMNI:  # a setting of the whole, which the thinker is part of
        own["vision_start_token_id"] = id_of(tokens.around["image"][0])
    model = tiny_model(name, **own)
    vision = model.config.vision_config
    size = {"shortest_edge": 28 * 28, "longest_edge": 224 * 224}
    patch = {"patch_size": vision.patch_size, "merge_size": 2}
    films = {"do_sample_frames": False, "size": {**size, "longest_edge": 4 * 224 * 224}}
    parts = {
        "image_processor": image_processor(size=size, **patch),
        "tokenizer": tokenizer,
        "video_processor": video_processor(**films, **patch),
    }
    if tokens is OMNI:
        parts["feature_extractor"] = hf.WhisperFeatureExtractor()
    made = processor(**parts, chat_template=template)
    if tokens is OMNI:
        made.videos_kwargs = {}  # no frames of at least a hundred tokens
    return model, made
