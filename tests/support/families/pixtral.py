"""Tiny Pixtral and Mistral 3 models, whose pictures keep their shape, with their real processors."""

import transformers as hf

from tests.support.families.table import Built, family
from tests.support.models.parts import TEXT, pixtral
from tests.support.tokenizer import byte_tokenizer

MERGE = {"pixtral": 1, "mistral3": 2}
"""Patches of a token's edge."""


@family("pixtral", "pixtral")
@family("mistral3", "mistral3")
def build(name: str) -> Built:
    """Pictures up to 112 pixels, patches of 14."""
    tokenizer = byte_tokenizer("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    image_id = tokenizer.convert_tokens_to_ids("[IMG]")
    text = hf.MistralConfig(**{**TEXT, "vocab_size": 300})
    if name == "pixtral":
        config = hf.LlavaConfig(
            vision_config=pixtral(),
            text_config=text,
            image_token_index=image_id,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        )
        model = hf.LlavaForConditionalGeneration(config)
    else:
        config = hf.Mistral3Config(
            vision_config=pixtral(), text_config=text, image_token_index=image_id, spatial_merge_size=2
        )
        model = hf.Mistral3ForConditionalGeneration(config)
    processor = hf.PixtralProcessor(
        hf.PixtralImageProcessorPil(size={"longest_edge": 112}, patch_size=14),
        tokenizer,
        patch_size=14,
        spatial_merge_size=MERGE[name],
    )
    return model, processor
