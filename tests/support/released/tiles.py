"""Checkpoints that cut a picture into tiles of full detail, with a thumbnail of the whole."""

from typing import Any

import transformers as hf
from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

from tests.support.released.entry import BROAD, WIDE, Grid, Released, edge, siglip


def tiled(grid: Grid, wide: int, broad: int) -> dict[Any, Any]:
    """So many tiles of this grid, the thumbnail counted."""
    return {WIDE: (grid,) * wide, BROAD: (grid,) * broad}


TAGS = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
IDEFICS = ("<fake_token_around_image>", "<end_of_utterance>", "<global-img>", "<video>", *TAGS)
COHERE = {
    "boi_token": "<|START_OF_IMG|>",
    "eoi_token": "<|END_OF_IMG|>",
    "image_token": "<|IMG_PATCH|>",
    "img_line_break_token": "<|IMG_LINE_BREAK|>",
}


OVIS = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")


def idefics(
    longest: int, tile: int, side: int, scale: int, patch: int = 14, smol: bool = False, cut: bool = True
) -> Released:
    """The longest edge brought to four tiles, so that 640 x 480 are 4 x 3 of them, or the whole alone if not `cut`."""
    return Released(
        "smolvlm" if smol else "idefics3",
        {"vision_config": {"image_size": tile, "patch_size": patch}, "scale_factor": scale},
        hf.SmolVLMImageProcessorPil if smol else hf.Idefics3ImageProcessorPil,
        {"size": {"longest_edge": longest}, "max_image_size": {"longest_edge": tile}, "do_image_splitting": cut},
        hf.SmolVLMProcessor if smol else hf.Idefics3Processor,
        {"image_seq_len": side**2},
        tiled((side, side), 13 if cut else 1, 5 if cut else 1),
        specials=IDEFICS,
        films=SmolVLMVideoProcessor if smol else None,
    )


def lfm2(seen: dict[Any, Any], thumbnail: bool) -> Released:
    """A crop of at most 256 tokens of 32 x 32 pixels, up to twice as many pixels; else crops of 512 x 512."""
    return Released(
        "lfm2_vl",
        {"vision_config": {"patch_size": 16, "num_patches": 256}, "downsample_factor": 2},
        hf.Lfm2VlImageProcessor,
        {"tile_size": 512, "encoder_patch_size": 16, "downsample_factor": 2, "min_image_tokens": 64}
        | {"max_image_tokens": 256, "min_tiles": 2, "max_tiles": 10, "max_pixels_tolerance": 2.0}
        | {"use_thumbnail": thumbnail},
        hf.Lfm2VlProcessor,
        {},
        # 700 x 600 are 1.6 times as many pixels, and shrunk by 1.27 to whole tokens
        {WIDE: ((13, 18),), BROAD: ((8, 32),), (700, 600): ((14, 17),), **seen},
        specials=(
            *(f"<|{tag}|>" for tag in ("image_start", "image_end", "img_thumbnail")),
            *(f"<|img_row_{row}_col_{column}|>" for row in range(1, 11) for column in range(1, 11)),
        ),
    )


TILES = {
    "OpenGVLab/InternVL3-8B-hf": Released(
        "internvl",
        {
            "vision_config": {"image_size": [448, 448], "patch_size": [14, 14]},
            "image_seq_length": 256,
            "downsample_ratio": 0.5,
        },
        hf.GotOcr2ImageProcessorPil,
        {"size": edge(448), "crop_to_patches": True, "min_patches": 1, "max_patches": 12},
        hf.InternVLProcessor,
        {"image_seq_length": 256},
        tiled((16, 16), 13, 5),  # 4 x 3 and 4 x 1, the shapes that fit exactly
        image="<IMG_CONTEXT>",
        named={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        films=hf.InternVLVideoProcessor,
    ),
    "HuggingFaceM4/Idefics3-8B-Llama3": idefics(1456, 364, 13, 2),
    "HuggingFaceTB/SmolVLM-Instruct": idefics(1536, 384, 9, 3),
    "HuggingFaceTB/SmolVLM-Instruct-DPO": idefics(1536, 384, 9, 3, cut=False),
    "ibm-granite/granite-docling-258M": idefics(2048, 512, 8, 4, patch=16),
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": idefics(1536, 384, 9, 3, smol=True),
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct": idefics(2048, 512, 8, 4, patch=16, smol=True),
    "CohereLabs/aya-vision-8b": Released(
        "aya_vision",
        {"vision_config": siglip(364), "downsample_factor": 2},
        hf.GotOcr2ImageProcessorPil,
        {"size": edge(364), "crop_to_patches": True, "min_patches": 1, "max_patches": 12},
        hf.AyaVisionProcessor,
        {"patch_size": 14, "downsample_factor": 2, "img_size": 364},
        tiled((13, 13), 13, 5),
        image="<|IMG_PATCH|>",
        specials=("<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>", "TILE_GLOBAL", "<image>"),
    ),
    "CohereLabs/command-a-vision-07-2025": Released(
        "cohere2_vision",
        {"vision_config": siglip(512, 16), "downsample_factor": 2},
        hf.Cohere2VisionImageProcessor,
        {"size": edge(512), "min_patches": 1, "max_patches": 12, "patch_size": 16},
        hf.Cohere2VisionProcessor,
        {},
        tiled((16, 16), 3, 4),  # 1 x 2 and 1 x 3, the least enlargement
        image="<|IMG_PATCH|>",
        named=COHERE,
    ),
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": Released(
        "llama4",
        {
            "vision_config": {
                "image_size": 336,
                "patch_size": 14,
                "pixel_shuffle_ratio": 0.5,
                "intermediate_size": 128,
                "projector_input_dim": 32,
                "projector_output_dim": 32,
                "vision_output_dim": 32,
            },
            "text_config": {"no_rope_layers": [1, 0], "moe_layers": [1], "intermediate_size_mlp": 32},
        },
        hf.Llama4ImageProcessor,
        {"size": edge(336), "max_patches": 16, "resize_to_max_canvas": False},
        hf.Llama4Processor,
        {"patch_size": 14, "pixel_shuffle_ratio": 0.5},
        tiled((12, 12), 5, 5),  # 2 x 2 tiles hold 640 x 480, and 1 x 4 hold 1200 x 300
        image="<|patch|>",
        specials=("<|image|>", "<|image_start|>", "<|image_end|>", "<|tile_x_separator|>", "<|tile_y_separator|>"),
    ),
    "thisisiron/Ovis2-8B-hf": Released(
        "ovis2",
        {"vision_config": {"image_size": 448, "patch_size": 14, "hidden_stride": 2}},
        hf.Ovis2ImageProcessorPil,
        {"size": edge(448), "crop_to_patches": True, "min_patches": 1, "max_patches": 12},
        hf.Ovis2Processor,
        {"image_seq_length": 256},
        # the fewest tiles that keep nine tenths of the pixels: 2 x 2, 1 x 3, and of 4400 x 400 no fewer than 1 x 10
        {**tiled((16, 16), 5, 4), (4400, 400): ((16, 16),) * 11},
        image="<IMG_ATOM>",
        specials=("<image>", *OVIS),
        ids={"visual_indicator_token_ids": OVIS},
    ),
    "LiquidAI/LFM2-VL-1.6B": lfm2({(1024, 1024): ((16, 16),) * 5}, thumbnail=True),
    "LiquidAI/LFM2-VL-450M": lfm2({(1024, 1024): ((16, 16),) * 4}, thumbnail=False),
}
