"""Checkpoints with ways of their own. Without an owner in the name, no file of the checkpoint was found."""

import transformers as hf
from transformers.models.ernie4_5_vl_moe.video_processing_ernie4_5_vl_moe import Ernie4_5_VLMoeVideoProcessor
from transformers.models.video_llama_3.video_processing_video_llama_3 import VideoLlama3VideoProcessor

from tests.support.models.parts import MROPE, NO_HEAD_DIM
from tests.support.released.entry import BROAD, TINY, WIDE, Released, edge
from tests.support.released.grids import BY_28, SMALL_28, pixels

BAIDU = "<|IMAGE_PLACEHOLDER|>"
MOLMO = ("<im_start>", "<low_res_im_start>", "<im_end>", "<im_col>", "<|video|>", "<frame_start>", "<frame_end>")
MINI = {f"{what}_{end}_token": f"<{what}_{end}>" for what in ("image", "slice", "image_id") for end in ("start", "end")}
TAGS = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
KINDS = ("image", "video")
GEMMA = {"image": "<|image|>", "boi": "<begin>", "eoi": "<end>", "audio": "<a>", "boa": "<ba>", "eoa": "<ea>"}
GEMMA_TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16}
GEMMA_TOWER |= {"num_attention_heads": 2, "num_key_value_heads": 2, "position_embedding_size": 512}

OWN_WAYS: dict[str, Released] = {
    "PaddlePaddle/PaddleOCR-VL": Released(
        "paddleocr_vl",
        {"vision_config": {"patch_size": 14, "spatial_merge_size": 2, "image_size": 384}},
        hf.PaddleOCRVLImageProcessorPil,
        {**pixels(147384, 2822400), "temporal_patch_size": 1},
        hf.PaddleOCRVLProcessor,
        {},
        {**BY_28, (280, 280): ((14, 14),)},  # enlarged by 1.371 to 147384 pixels, 188 tokens of 28 x 28
        image=BAIDU,
        specials=("<|VIDEO_PLACEHOLDER|>", "<|IMAGE_START|>", "<|IMAGE_END|>"),
        named={"image_token": BAIDU},
    ),
    "baidu/ERNIE-4.5-VL-28B-A3B-PT": Released(
        "ernie4_5_vl_moe",
        {
            "vision_config": {"patch_size": 14},
            "text_config": {
                **NO_HEAD_DIM,
                "moe_intermediate_size": [32, 32],
                "moe_num_experts": 4,
                "moe_k": 2,
                "moe_num_shared_experts": 1,
                "rope_parameters": {**MROPE, "mrope_section": [3, 3, 2]},
            },
        },
        hf.Ernie4_5_VLMoeImageProcessorPil,
        {**pixels(3136, 4842768), "temporal_patch_size": 1},
        hf.Ernie4_5_VLMoeProcessor,
        {},
        {**SMALL_28, (2212, 2184): ((78, 79),)},  # 6162 tokens of 28 x 28, of at most 6177
        image=BAIDU,
        named={
            **{f"{kind}_token": f"<|{kind}_PLACEHOLDER|>".upper() for kind in KINDS},
            **{f"{kind}_{end}_token": f"<|{kind}_{end}|>".upper() for kind in KINDS for end in ("start", "end")},
        },
        films=Ernie4_5_VLMoeVideoProcessor,
    ),
    "DAMO-NLP-SG/VideoLLaMA3-7B-Image": Released(
        "video_llama_3",
        {"vision_config": {"patch_size": 14}},
        hf.VideoLlama3ImageProcessorPil,
        pixels(3136, 3211264, merge=1),
        hf.VideoLlama3Processor,
        {},
        # each patch of 14 is a token: 16 at least, and 16384 at most, for which 3000 x 1500 are shrunk by 1.1838
        {WIDE: ((34, 46),), BROAD: ((21, 86),), TINY: ((4, 4),), (3000, 1500): ((90, 181),)},
        films=VideoLlama3VideoProcessor,
        image="<|image_pad|>",
        specials=("<|video_pad|>",),
    ),
    "tencent/HunyuanOCR": Released(
        "hunyuan_vl",
        {"vision_config": {"patch_size": 16}},
        hf.HunYuanVLImageProcessorPil,
        pixels(262144, 4194304, patch=16),
        hf.HunYuanVLProcessor,
        {},
        {WIDE: ((15, 20),), BROAD: ((9, 38),), TINY: ((16, 16),)},  # 262144 pixels at least
        named={"image_token": "<image>", "image_start_token": "<start>", "image_end_token": "<end>"},
    ),
    "facebook/Perception-LM-3B": Released(
        "perception_lm",
        {},
        hf.PerceptionLMImageProcessor,
        {"tile_size": 448, "max_num_tiles": 36, "size": edge(448)},
        hf.PerceptionLMProcessor,
        {"patch_size": 14, "pooling_ratio": 2},
        # the whole, and enlarged as far as 36 tiles go: 5 x 7 and 3 x 12
        {WIDE: ((16, 16),) * 36, BROAD: ((16, 16),) * 37},
        image="<|image|>",
        named={"image_token": "<|image|>", "video_token": "<|video|>"},
        films=hf.PerceptionLMVideoProcessor,
    ),
    "allenai/Molmo2-8B": Released(
        "molmo2",
        {"vision_config": {"image_size": [378, 378], "num_position_embeddings": 729}},
        hf.Molmo2ImageProcessor,
        {"size": edge(378), "overlap_margins": [4, 4], "max_crops": 8, "patch_size": 14, "pooling_size": [2, 2]},
        hf.Molmo2Processor,
        {},
        # two patches a token's edge, the last one alone: the whole of 27 x 27 patches; crops that add 19 each to 8, in
        # 2 x 2 and 1 x 5
        {WIDE: ((14, 14), (23, 23)), BROAD: ((14, 14), (14, 52))},
        image="<im_patch>",
        specials=MOLMO,
        named={"image_token": "<|image|>"},
        films=hf.Molmo2VideoProcessor,
        ids={
            "image_start_token_id": "<im_start>",
            "low_res_image_start_token_id": "<low_res_im_start>",
            "image_end_token_id": "<im_end>",
        },
    ),
    "openbmb/MiniCPM-V-4.6": Released(
        "minicpmv4_6",
        {},
        hf.MiniCPMV4_6ImageProcessorPil,
        {"scale_resolution": 448, "patch_size": 14, "max_slice_nums": 9},
        hf.MiniCPMV4_6Processor,
        {},
        # the whole, and 1 x 2 and 1 x 3 slices, each of about 448 x 448 pixels in its own shape, a token 56 x 56
        {WIDE: ((7, 9), (10, 7), (10, 7)), BROAD: ((4, 16), (7, 9), (7, 9), (7, 9))},
        named={"image_token": "<image>", "video_token": "<video>", **MINI},
        films=hf.MiniCPMV4_6VideoProcessor,
    ),
    "google/gemma-4-E2B-it": Released(
        "gemma4",
        {
            "vision_config": {**GEMMA_TOWER, "patch_size": 16, "pooling_kernel_size": 3},
            "text_config": {"layer_types": ["sliding_attention", "full_attention"], "global_head_dim": 8},
            "audio_config": None,
        },
        hf.Gemma4ImageProcessorPil,
        {"patch_size": 16, "pooling_kernel_size": 3, "max_soft_tokens": 280},
        hf.Gemma4Processor,
        {"feature_extractor": hf.Gemma4AudioFeatureExtractor()},
        # enlarged to at most 280 tokens of 48 x 48: by 1.449 and by 1.339, and cut to whole tokens
        {WIDE: ((14, 19),), BROAD: ((8, 33),)},
        image="<|image|>",
        named={f"{name}_token": token for name, token in GEMMA.items()},
        films=hf.Gemma4VideoProcessor,
    ),
    "Granite Docling 2": Released(
        "granite_docling",
        {
            "vision_config": {
                "image_size": 512,
                "patch_size": 16,
                "scale_factor": 4,
                "deepstack_visual_indexes": [0],
            }
        },
        hf.GraniteDoclingImageProcessorPil,
        {"size": edge(512), "max_patches": 32},
        hf.GraniteDoclingProcessor,
        {"image_seq_len": 64},
        {WIDE: ((8, 8),) * 13, BROAD: ((8, 8),) * 5},
        specials=("<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *TAGS),
        named={"image_token": "<image>"},
    ),
}
