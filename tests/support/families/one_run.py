"""Tiny models that write each picture as one run of tokens, in ways of their own, with their real processors."""

from typing import Any

import transformers as hf

from tests.support.classes.table import SETTINGS
from tests.support.families.small import small

NAMES = [
    "got_ocr2",
    "pp_chart2table",
    "gemma3n",
    "lighton_ocr",
    "hunyuan_vl",
    "kimi_k25",
    "inkling2",
    "nemotron_h_omni",
]
NAMES += ["minimax_m3_vl", "muse_glimmer", "gemma4_unified", "emu3", "chameleon", "muse_spark"]
NAMES += ["dots3_note", "mistral_large4"]


@small("got_ocr2", "<img>", "</img>", "<|im_start|>", "<|im_end|>", image="<imgpad>")
@small("pp_chart2table", "<img>", "</img>", "<|im_start|>", "<|im_end|>", image="<imgpad>")
def got_ocr2(name: str, tokens: Any) -> tuple[dict[str, Any], Any]:
    """Four tokens a picture."""
    processor = hf.GotOcr2Processor(hf.GotOcr2ImageProcessorPil(size={"height": 128, "width": 128}), tokens)
    processor.num_image_tokens = 4
    return {}, processor


@small(
    "gemma3n",
    image="<soft>",
    image_token="<soft>",
    boi_token="<begin>",
    eoi_token="<end>",
    audio_token="<a>",
    boa_token="<ba>",
    eoa_token="<ea>",
)
def gemma3n(name: str, tokens: Any) -> tuple[dict[str, Any], Any]:
    """A square of 3 x 3 cells."""
    seen = hf.SiglipImageProcessorPil(size={"height": 96, "width": 96})
    processor = hf.Gemma3nProcessor(hf.Gemma3nAudioFeatureExtractor(), seen, tokens, image_seq_length=9)
    ids = {"boi_token_id": tokens.boi_token_id, "eoi_token_id": tokens.eoi_token_id}
    return {"vision_soft_tokens_per_image": 9, **ids}, processor


@small("lighton_ocr", image="<image>", image_token="<image>", image_break_token="<break>", image_end_token="<end>")
def lighton_ocr(name: str, tokens: Any) -> tuple[dict[str, Any], Any]:
    seen = hf.PixtralImageProcessorPil(size={"longest_edge": 112}, patch_size=28)
    return {"vision_config": {"image_size": 112}}, hf.LightOnOcrProcessor(
        seen, tokens, patch_size=14, spatial_merge_size=2
    )


@small("hunyuan_vl", image="<image>", image_token="<image>", image_start_token="<start>", image_end_token="<end>")
def hunyuan_vl(name: str, tokens: Any) -> tuple[dict[str, Any], Any]:
    size = {"shortest_edge": 28 * 28, "longest_edge": 112 * 112}
    return {}, hf.HunYuanVLProcessor(hf.HunYuanVLImageProcessorPil(size=size, patch_size=14), tokens)


@small(
    "kimi_k25", "<|media_begin|>", "<|media_content|>", "<|media_end|>", image="<|media_pad|>", video="<|video_pad|>"
)
def kimi_k25(name: str, tokens: Any) -> tuple[dict[str, Any], Any]:
    seen = hf.Kimi_K25ImageProcessor(size={"max_height": 8, "max_width": 8})
    return {}, hf.Kimi_K25Processor(seen, tokens, hf.Kimi_K25VideoProcessor())


@small("inkling2", image="<image>", image_token="<image>")
def inkling2(name: str, tokens: Any) -> tuple[dict[str, Any], Any]:
    """A token covers 28 x 28 pixels of the picture as it is."""
    return {}, hf.Inkling2Processor(hf.Inkling2ImageProcessor(size={"height": 28, "width": 28}), tokens)


@small(
    "nemotron_h_omni",
    "<img>",
    "</img>",
    "<video>",
    "<so_embedding>",
    "<so_start>",
    "<so_end>",
    image="<image>",
    video="<video>",
)
def nemotron(name: str, tokens: Any) -> tuple[dict[str, Any], Any]:
    seen = hf.NemotronH_Omni_Reasoning_V3ImageProcessor(patch_size=14, min_num_patches=4, max_num_patches=64)
    films = hf.NemotronH_Omni_Reasoning_V3VideoProcessor()
    return {}, hf.NemotronH_Omni_Reasoning_V3Processor(
        image_processor=seen, tokenizer=tokens, video_processor=films, feature_extractor=hf.ParakeetFeatureExtractor()
    )


@small("minimax_m3_vl", "]<]start of image[>[", "]<]end of image[>[", image="]<]image[>[", video="]<]video[>[")
def minimax(name: str, tokens: Any) -> tuple[dict[str, Any], Any]:
    size = {"shortest_edge": 28 * 28, "longest_edge": 112 * 112}
    seen, films = hf.MiniMaxM3VLImageProcessor(size=size), hf.MiniMaxM3VLVideoProcessor(size=size)
    return {}, hf.MiniMaxM3VLProcessor(seen, tokens, films)


MUSE = ["<|image_start|>", "<|image_end|>", "<|vid_frame_separator|>", "<|vid_start|>", "<|vid_end|>"]


@small("muse_glimmer", *MUSE, image="<|patch|>", video="<|video|>")
def muse(name: str, tokens: Any) -> tuple[dict[str, Any], Any]:
    seen, films = hf.MuseGlimmerImageProcessor(), hf.MuseGlimmerVideoProcessor()
    return {}, hf.MuseGlimmerProcessor(image_processor=seen, video_processor=films, tokenizer=tokens)


AUDIO = {"audio_token": "<a>", "boa_token": "<ba>", "eoa_token": "<ea>"}


@small(
    "gemma4_unified",
    image="<|image|>",
    video="<|video|>",
    image_token="<|image|>",
    boi_token="<b>",
    eoi_token="<e>",
    **AUDIO,
)
def gemma4_unified(name: str, tokens: Any) -> tuple[dict[str, Any], Any]:
    """A token covers 8 x 8 pixels."""
    sizes = {"patch_size": 4, "pooling_kernel_size": 2, "max_soft_tokens": 70}
    seen, films = (
        hf.Gemma4UnifiedImageProcessor(**sizes),
        hf.Gemma4UnifiedVideoProcessor(**sizes, do_sample_frames=False),
    )
    processor = hf.Gemma4UnifiedProcessor(hf.Gemma4UnifiedAudioFeatureExtractor(), seen, tokens, films)
    ids = {"boi_token_id": tokens.boi_token_id, "eoi_token_id": tokens.eoi_token_id}
    vision = {**SETTINGS[name]["vision_config"], "mm_posemb_size": 64}
    return {**ids, "video_token_id": processor.video_token_id, "vision_config": vision}, processor


EMU = {
    "boi_token": "<|image start|>",
    "eoi_token": "<|image end|>",
    "image_wrapper_token": "<|image token|>",
    "eof_token": "<|extra_201|>",
}


@small("emu3", image="<image>", image_token="<image>", **EMU)
def emu3(name: str, tokens: Any) -> tuple[dict[str, Any], Any]:
    """A token covers 8 x 8 pixels."""
    settings = SETTINGS[name]
    codes = {**settings["vocabulary_map"], "<image>": tokens.image_token_id}
    seen = hf.Emu3ImageProcessor(min_pixels=16 * 16, max_pixels=40 * 40, spatial_factor=8)
    vision = {**settings["vq_config"], "channel_multiplier": [1, 1, 1, 1]}
    return {"vq_config": vision, "vocabulary_map": codes}, hf.Emu3Processor(seen, tokens)


@small("chameleon", image="<image>", image_token="<image>", boi_token="<begin>", eoi_token="<end>")
def chameleon(name: str, tokens: Any) -> tuple[dict[str, Any], Any]:
    """A token covers 8 x 8 pixels of 32 x 32."""
    settings = SETTINGS[name]
    codes = {**settings["vocabulary_map"], "<image>": tokens.image_token_id}
    seen = hf.ChameleonImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    vision = {**settings["vq_config"], "resolution": 32, "channel_multiplier": [1, 1, 1, 1]}
    return {"vq_config": vision, "vocabulary_map": codes}, hf.ChameleonProcessor(seen, tokens, image_seq_length=16)


@small(
    "muse_spark", *MUSE, "<|audio|>", "<|soft_audio_start|>", "<|soft_audio_end|>", image="<|patch|>", video="<|video|>"
)
def muse_spark(name: str, tokens: Any) -> tuple[dict[str, Any], Any]:
    parts = {"image_processor": hf.MuseGlimmerImageProcessor(), "video_processor": hf.MuseGlimmerVideoProcessor()}
    return {}, hf.MuseSparkProcessor(**parts, tokenizer=tokens, feature_extractor=hf.MuseSparkFeatureExtractor())


@small("dots3_note", "<|video_pad|>", "<|audio_comp_pad|>", image="<|imgpad|>", video="<|video_pad|>")
def dots3_note(name: str, tokens: Any) -> tuple[dict[str, Any], Any]:
    sizes = {"size": {"shortest_edge": 28 * 28, "longest_edge": 112 * 112}, "patch_size": 14, "temporal_patch_size": 1}
    parts = {
        "image_processor": hf.Qwen2VLImageProcessorPil(**sizes),
        "video_processor": hf.Qwen2VLVideoProcessor(**sizes),
    }
    return {}, hf.Dots3NoteProcessor(**parts, tokenizer=tokens, feature_extractor=hf.Dots3NoteFeatureExtractor())


@small("mistral_large4", "[IMG_BREAK]", "[IMG_END]", image="[IMG]")
def mistral_large4(name: str, tokens: Any) -> tuple[dict[str, Any], Any]:
    """Pixtral's layout, with a break after each row; patches of 14 merged 2 x 2."""
    seen = hf.PixtralImageProcessorPil(size={"longest_edge": 112}, patch_size=14)
    processor = hf.PixtralProcessor(seen, tokens, patch_size=14, spatial_merge_size=2)
    return {"vision_config": {"image_size": 112}}, processor


@small("aria", image="<image>", image_token="<image>", variant="generic")
def aria(name: str, tokens: Any) -> tuple[dict[str, Any], Any]:
    """Six queries a picture, of 35 x 35 patches."""
    processor = hf.AriaProcessor(hf.AriaImageProcessorPil(), tokens, size_conversion={490: 6})
    processor.images_kwargs = {"max_image_size": 490, "split_image": False}
    return {"projector_patch_to_query_dict": {35 * 35: 6}, "vision_config": {"image_size": 490}}, processor


@small("deepseek_ocr2", image="<image>", image_token="<image>", variant="generic")
def deepseek_ocr2(name: str, tokens: Any) -> tuple[dict[str, Any], Any]:
    """As many queries as the model has, 144 for the whole of a picture and for each crop."""
    seen = hf.DeepseekOcr2ImageProcessorPil(size={"height": 768, "width": 768}, tile_size=768, max_patches=2)
    return {}, hf.DeepseekOcr2Processor(seen, tokens)
