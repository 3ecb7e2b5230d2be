"""A tiny Gemma 4 with its real processor."""

import transformers as hf

from tests.support.families.table import Built, family
from tests.support.models.parts import TEXT
from tests.support.tokenizer import byte_tokenizer

PATCH, POOL = 4, 2


@family("gemma4")
def build() -> Built:
    """At most 70 tokens a picture, each 2 x 2 patches of 4 x 4 pixels."""
    named = {"image": "<|image|>", "boi": "<begin>", "eoi": "<end>", "audio": "<a>", "boa": "<ba>", "eoa": "<ea>"}
    tokens = byte_tokenizer(**{f"{name}_token": token for name, token in named.items()})
    sizes = {"patch_size": PATCH, "pooling_kernel_size": POOL, "max_soft_tokens": 70}
    processor = hf.Gemma4Processor(
        hf.Gemma4AudioFeatureExtractor(),
        hf.Gemma4ImageProcessorPil(**sizes),
        tokens,
        hf.Gemma4VideoProcessor(**sizes, do_sample_frames=False),
    )
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "patch_size": PATCH,
        "pooling_kernel_size": POOL,
        "position_embedding_size": 512,
    }
    text = {
        **TEXT,
        "vocab_size": 300,
        "vocab_size_per_layer_input": 300,
        "hidden_size_per_layer_input": 8,
        "global_head_dim": 16,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    }
    config = hf.Gemma4Config(
        vision_config=vision,
        text_config=text,
        audio_config=None,
        image_token_id=tokens.image_token_id,
        video_token_id=processor.video_token_id,
        boi_token_id=tokens.boi_token_id,
        eoi_token_id=tokens.eoi_token_id,
    )
    return hf.Gemma4ForConditionalGeneration(config), processor
