"""A tiny Llama 3.2 Vision with its real processor."""

import transformers as hf
from torch import nn

from tests.support.families.table import Built, family
from tests.support.models.parts import NO_HEAD_DIM, TOWER
from tests.support.tokenizer import byte_tokenizer


@family("mllama")
def build() -> Built:
    tokens = byte_tokenizer("<|python_tag|>", image_token="<|image|>")
    vision = {
        **TOWER,
        "num_global_layers": 1,
        "attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
        "vision_output_dim": 64,
        "intermediate_layers_indices": [0],
        "max_num_tiles": 4,
    }
    config = hf.MllamaConfig(
        vision_config=vision,
        text_config={**NO_HEAD_DIM, "vocab_size": 300, "cross_attention_layers": [1]},
        image_token_index=tokens.image_token_id,
    )
    model = hf.MllamaForConditionalGeneration(config)
    for name, gate in model.named_parameters():  # closed in a fresh model, which would hide the picture
        if "gate" in name and gate.numel() == 1:
            nn.init.constant_(gate, 0.7)
    seen = hf.MllamaImageProcessorPil(size={"height": 56, "width": 56}, max_image_tiles=4)
    return model, hf.MllamaProcessor(seen, tokens)
