"""A tiny Gemma 3 with its real processor, without and with pan and scan."""

import torch
import transformers as hf

from tests.support.families.table import Built, family
from tests.support.models.parts import TEXT, siglip
from tests.support.tokenizer import byte_tokenizer

PAN = {
    "do_pan_and_scan": True,
    "pan_and_scan_min_crop_size": 20,
    "pan_and_scan_max_num_crops": 4,
    "pan_and_scan_min_ratio_to_activate": 1.2,
}


@family("gemma3", False)
@family("gemma3 pan", True)
def build(pan: bool) -> Built:
    tokens = byte_tokenizer(image_token="<soft>", boi_token="<begin>", eoi_token="<end>")
    config = hf.Gemma3Config(
        text_config={**TEXT, "vocab_size": 300, "query_pre_attn_scalar": 16, "sliding_window": 8},
        vision_config=siglip().to_dict(),
        mm_tokens_per_image=4,
        image_token_index=tokens.image_token_id,
        boi_token_index=tokens.boi_token_id,
        eoi_token_index=tokens.eoi_token_id,
    )
    model = hf.Gemma3ForConditionalGeneration(config)
    with torch.no_grad():
        model.model.multi_modal_projector.mm_input_projection_weight.normal_(std=0.02)
    seen = hf.Gemma3ImageProcessorPil(size={"height": 56, "width": 56})
    processor = hf.Gemma3Processor(seen, tokens, image_seq_length=4)
    if pan:  # settings of the image processor itself are overruled by these
        processor.images_kwargs = PAN
    return model, processor
