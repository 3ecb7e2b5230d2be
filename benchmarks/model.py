"""What the benchmarks run: a random LLaVA of medium size, and prompts of 700 tokens (one picture) and 3,000 (five).

A picture is 576 visual tokens, and 90 text tokens follow the last one. The vision tower is not part of the measure: it
runs once, here, and every pass is given its features. Five tokens are made attention sinks, as real models have them:
the first token and four patches hold massive values in two dimensions of the residual stream, and keys read these.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

from lmm_lens import Lens, Prompt

BOS, IMAGE_TOKEN, TOKENS_PER_IMAGE, TEXT_AFTER_IMAGE = 1, 999, 576, 90
PICTURE = 49  # visual tokens of the small pictures of `given_pictures`
LENGTHS = {700: 1, 3000: 5}  # tokens: pictures among them
SIZES: dict[str, dict[str, Any]] = {  # "wide" is for many words; "7b" is the shape of LLaVA-1.5-7B, for a GPU
    "mid": {"num_hidden_layers": 8, "hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 2816},
    "wide": {"num_hidden_layers": 4, "hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 2816},
    "7b": {"num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "intermediate_size": 11008},
}
SINK_DIMS, SINK_PATCHES, MASSIVE, KEY_GAIN = (100, 500), (50, 200, 300, 431), 100.0, 8.0


def build(size: str, device: torch.device, n_words: int = 1000) -> Any:
    """A random LLaVA that can have sinks and never ends its answers: fp32 on the CPU, bf16 on a GPU."""
    text = LlamaConfig(vocab_size=n_words, max_position_embeddings=4096, bos_token_id=BOS, **SIZES[size])
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=336, patch_size=14
    )
    torch.manual_seed(0)
    with device, torch.no_grad():
        config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_TOKEN)
        model: Any = LlavaForConditionalGeneration(config)
        model.get_input_embeddings().weight[BOS, list(SINK_DIMS)] = MASSIVE
        for layer in model.model.language_model.layers:
            layer.self_attn.k_proj.weight[:, list(SINK_DIMS)] *= KEY_GAIN
    model.generation_config.eos_token_id = None
    return model.eval().to(torch.bfloat16 if device.type == "cuda" else torch.float32)


def given_pictures(text: LlamaConfig, batch: int, n_tokens: int, n_after: int) -> tuple[Lens, Prompt]:
    """A random LLaVA with a decoder of any shape, and a prompt whose pictures' features are given and hold sinks.

    Args:
        text: the decoder.
        batch: rows of the prompt.
        n_tokens: of each row, pictures of `PICTURE` tokens as many as there is room for before the last.
        n_after: so many tokens stand behind the last picture.
    """
    vision = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    torch.manual_seed(0)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_TOKEN)
    model: Any = LlavaForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = None
    n_pictures = (n_tokens - 1 - n_after) // PICTURE
    n_visual, width = n_pictures * PICTURE, text.hidden_size
    ids = torch.randint(3, IMAGE_TOKEN, (batch, n_tokens))
    start = n_tokens - n_after - n_visual
    ids[:, 0], ids[:, start : start + n_visual] = BOS, IMAGE_TOKEN
    pictures = torch.randn(batch * n_pictures, PICTURE, width) / 50
    for dim in SINK_DIMS:
        pictures[::n_pictures, [place % PICTURE for place in SINK_PATCHES], dim % width] = MASSIVE
    features: Any = [*pictures]  # a list, as the model's own are
    given = {"image": BaseModelOutputWithPooling(pooler_output=features)}
    lens = Lens(model)
    return lens, lens.prompt(inputs={"input_ids": ids, "mm_encoder_outputs": given})


@cache
def twin(model: Any, attention: str) -> Any:
    """A model of its own on the same weights."""
    copied = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
    copied.set_attn_implementation(attention)
    return copied


def prompt_of(lens: Lens, n_tokens: int) -> Prompt:
    """Random text around pictures whose features are computed here; the first picture has sinks."""
    n_visual = LENGTHS[n_tokens] * TOKENS_PER_IMAGE
    ids = torch.randint(3, IMAGE_TOKEN, (1, n_tokens), generator=torch.Generator().manual_seed(n_tokens))
    start = n_tokens - TEXT_AFTER_IMAGE - n_visual
    ids[:, 0], ids[:, start : start + n_visual] = BOS, IMAGE_TOKEN
    model: Any = lens.model
    pixels = torch.randn(LENGTHS[n_tokens], 3, 336, 336, device=lens.device, dtype=model.dtype)
    with torch.no_grad():
        pictures = model.get_image_features(pixels, return_dict=True)
    for dim in SINK_DIMS:
        pictures.pooler_output[0][list(SINK_PATCHES), dim] = MASSIVE
    return lens.prompt(inputs={"input_ids": ids, "mm_encoder_outputs": {"image": pictures}})
