"""Tiny Idefics 2, BLIP-2 and InstructBLIP, whose visual tokens are queries, with their real processors."""

from typing import Any

import transformers as hf

from tests.support.families.table import Built, family
from tests.support.models.parts import NO_HEAD_DIM, SMALL, TEXT
from tests.support.tokenizer import byte_tokenizer


@family("idefics2", True)
@family("idefics2 whole", False)
def idefics2(split: bool) -> Built:
    config = hf.Idefics2Config(
        vision_config=SMALL,
        perceiver_config={
            "hidden_size": 64,
            "resampler_n_latents": 8,
            "resampler_depth": 2,
            "resampler_n_heads": 2,
            "resampler_head_dim": 16,
            "num_key_value_heads": 1,
        },
        text_config=hf.MistralConfig(**{**TEXT, "vocab_size": 300}),
    )
    seen = hf.Idefics2ImageProcessorPil(size={"shortest_edge": 28, "longest_edge": 56}, do_image_splitting=split)
    processor = hf.Idefics2Processor(seen, byte_tokenizer(), image_seq_len=8)
    config.image_token_id = processor.image_token_id
    return hf.Idefics2ForConditionalGeneration(config), processor


@family("blip-2")
def blip_2(name: str = "Blip2", text: Any = None) -> Built:
    tokens = byte_tokenizer()
    extra = [byte_tokenizer()] if name == "InstructBlip" else []
    seen = hf.BlipImageProcessorPil(size={"height": 56, "width": 56})
    processor = getattr(hf, f"{name}Processor")(seen, tokens, *extra, num_query_tokens=8)
    text = text or hf.OPTConfig(
        **{**NO_HEAD_DIM, "vocab_size": 300, "ffn_dim": 96, "word_embed_proj_dim": 64}, do_layer_norm_before=True
    )
    queries = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = getattr(hf, f"{name}Config")(
        vision_config=SMALL,
        qformer_config={**queries, "intermediate_size": 64, "cross_attention_frequency": 1},
        text_config=text.to_dict(),
        num_query_tokens=8,
        image_token_index=tokens.convert_tokens_to_ids("<image>"),
    )
    return getattr(hf, f"{name}ForConditionalGeneration")(config), processor


@family("instructblip")
def instructblip() -> Built:
    return blip_2("InstructBlip", hf.LlamaConfig(**{**TEXT, "vocab_size": 300}))
