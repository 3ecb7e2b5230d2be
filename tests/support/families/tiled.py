"""The families that cut pictures into tiles, each on its real processor and a tiny model: tiles of 24 x 24 pixels make
3 x 3 tokens of 8 x 8 pixels each."""

import transformers as hf

from tests.support.families.table import Built, family
from tests.support.models.parts import NO_HEAD_DIM, TEXT
from tests.support.tokenizer import byte_tokenizer

TILE, TOKEN, PATCH = 24, 8, 4
SQUARE = {"height": TILE, "width": TILE}
CROPS = {"size": SQUARE, "min_patches": 1, "max_patches": 6}
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": TILE,
    "patch_size": PATCH,
}
VOCABULARY = {"vocab_size": 340, "num_hidden_layers": 2}
LLAMA, QWEN, COHERE = {**TEXT, **VOCABULARY}, {**NO_HEAD_DIM, **VOCABULARY}, {**NO_HEAD_DIM, **VOCABULARY}


@family("internvl")
def internvl() -> Built:
    tokenizer = byte_tokenizer(
        start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>", video_token="<video>"
    )
    processor = hf.InternVLProcessor(
        hf.GotOcr2ImageProcessorPil(**CROPS), tokenizer, hf.InternVLVideoProcessor(size=SQUARE), image_seq_length=9
    )
    vision = hf.InternVLVisionConfig(**{**TOWER, "image_size": [TILE, TILE], "patch_size": [PATCH, PATCH]})
    config = hf.InternVLConfig(
        vision_config=vision,
        text_config=hf.Qwen2Config(**QWEN),
        image_token_id=processor.image_token_id,
        image_seq_length=9,
        downsample_ratio=0.5,
    )
    return hf.InternVLForConditionalGeneration(config), processor


IDEFICS = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", "<video>"]
IDEFICS += [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
SPLIT = {"size": {"longest_edge": 4 * TILE}, "max_image_size": {"longest_edge": TILE}}


@family("idefics3")
def idefics3() -> Built:
    processor = hf.Idefics3Processor(hf.Idefics3ImageProcessorPil(**SPLIT), byte_tokenizer(*IDEFICS), image_seq_len=9)
    config = hf.Idefics3Config(
        vision_config=TOWER,
        text_config=hf.LlamaConfig(**LLAMA),
        image_token_id=processor.image_token_id,
        scale_factor=2,
    )
    return hf.Idefics3ForConditionalGeneration(config), processor


@family("smolvlm")
def smolvlm() -> Built:
    films = hf.SmolVLMVideoProcessor(**SPLIT, num_frames=8, fps=1)
    processor = hf.SmolVLMProcessor(
        hf.SmolVLMImageProcessorPil(**SPLIT), byte_tokenizer(*IDEFICS), films, image_seq_len=9
    )
    config = hf.SmolVLMConfig(
        vision_config=TOWER,
        text_config=hf.LlamaConfig(**LLAMA),
        image_token_id=processor.image_token_id,
        scale_factor=2,
    )
    return hf.SmolVLMForConditionalGeneration(config), processor


AYA = ["<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>"]


@family("aya_vision")
def aya_vision() -> Built:
    """The numbered tags are not in the vocabulary here and become six tokens each."""
    processor = hf.AyaVisionProcessor(
        hf.GotOcr2ImageProcessorPil(**CROPS),
        byte_tokenizer(*AYA, "TILE_GLOBAL", "<image>"),
        patch_size=PATCH,
        downsample_factor=2,
        img_size=TILE,
    )
    config = hf.AyaVisionConfig(
        vision_config=hf.SiglipVisionConfig(**TOWER, vision_use_head=False),
        text_config=hf.Cohere2Config(**COHERE),
        image_token_index=processor.image_token_id,
    )
    return hf.AyaVisionForConditionalGeneration(config), processor


@family("cohere2_vision")
def cohere2_vision() -> Built:
    tokenizer = byte_tokenizer(boi_token=AYA[0], eoi_token=AYA[1], image_token=AYA[2], img_line_break_token=AYA[3])
    processor = hf.Cohere2VisionProcessor(hf.Cohere2VisionImageProcessor(**CROPS, patch_size=3), tokenizer)
    config = hf.Cohere2VisionConfig(
        vision_config=hf.SiglipVisionConfig(**TOWER, vision_use_head=False),
        text_config=hf.Cohere2Config(**COHERE),
        image_token_id=processor.image_token_id,
        alignment_intermediate_size=32,
    )
    return hf.Cohere2VisionForConditionalGeneration(config), processor


@family("llama4")
def llama4() -> Built:
    tags = ["image", "image_start", "image_end", "patch", "tile_x_separator", "tile_y_separator"]
    tokenizer = byte_tokenizer(*[f"<|{tag}|>" for tag in tags])
    processor = hf.Llama4Processor(
        hf.Llama4ImageProcessor(size=SQUARE, max_patches=6), tokenizer, patch_size=PATCH, pixel_shuffle_ratio=0.5
    )
    processor.chat_template = None
    vision = hf.Llama4VisionConfig(
        **{**TOWER, "intermediate_size": 64},
        pixel_shuffle_ratio=0.5,
        projector_input_dim=16,
        projector_output_dim=16,
        vision_output_dim=16,
    )
    text = hf.Llama4TextConfig(**LLAMA, intermediate_size_mlp=32, num_local_experts=2)
    config = hf.Llama4Config(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<|patch|>"),
        boi_token_index=tokenizer.convert_tokens_to_ids("<|image_start|>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<|image_end|>"),
    )
    return hf.Llama4ForConditionalGeneration(config), processor


@family("lfm2_vl")
def lfm2_vl() -> Built:
    tags = ["image_start", "image_end", "img_thumbnail"]
    tags += [f"img_row_{row}_col_{column}" for row in range(1, 7) for column in range(1, 7)]
    tokenizer = byte_tokenizer("<image>", *[f"<|{tag}|>" for tag in tags])
    sizes = {"min_image_tokens": 4, "max_image_tokens": 12, "min_tiles": 2, "max_tiles": 6, "tile_size": TILE}
    processor = hf.Lfm2VlProcessor(
        hf.Lfm2VlImageProcessor(**sizes, encoder_patch_size=PATCH, downsample_factor=2), tokenizer
    )
    tower = {name: value for name, value in TOWER.items() if name != "image_size"}
    config = hf.Lfm2VlConfig(
        vision_config=hf.Siglip2VisionConfig(**tower, num_patches=36, vision_use_head=False),
        text_config=hf.Lfm2Config(**QWEN, layer_types=["conv", "full_attention"], block_multiple_of=16),
        image_token_id=processor.image_token_id,
        projector_hidden_size=16,
    )
    return hf.Lfm2VlForConditionalGeneration(config), processor


OVIS = ["<IMG_ATOM>", "<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"]


@family("ovis2")
@family("ovis2 26", 26)
def ovis2(edge: int = TILE) -> Built:
    tokenizer = byte_tokenizer("<image>", *OVIS)
    images = hf.Ovis2ImageProcessorPil(size={"height": edge, "width": edge}, crop_to_patches=True, max_patches=6)
    processor = hf.Ovis2Processor(images, tokenizer, image_seq_length=9)
    ids = tokenizer.convert_tokens_to_ids(OVIS)
    vision = {**TOWER, "image_size": edge, "hidden_stride": 2, "vocab_size": 40, "qk_norm": False}
    config = hf.Ovis2Config(
        vision_config=vision,
        text_config=hf.Qwen2Config(**QWEN),
        image_token_id=ids[0],
        visual_indicator_token_ids=ids[1:],
        hidden_size=64,
        vocab_size=340,
    )
    return hf.Ovis2ForConditionalGeneration(config), processor


NAMES = ["internvl", "idefics3", "smolvlm", "aya_vision", "cohere2_vision", "llama4", "lfm2_vl", "ovis2"]
