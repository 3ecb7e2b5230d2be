"""Classes that make one run of tokens of each picture, of a size that the configuration tells."""

import torch
from torch import nn

from tests.support.classes.cells import cells
from tests.support.classes.table import run_of, tiny
from tests.support.models.parts import CLOSE, IMAGE, OPEN, Inputs, around, picture

SAM = {
    "global_attn_indexes": [1],
    "mlp_dim": 32,
    "output_channels": 8,
    "image_size": 128,
    "patch_size": 16,
    "window_size": 4,
    "initializer_range": 0.02,
}
TONGUE = {
    "intermediate_size": 64,
    "activation_sparsity_pattern": None,
    "num_kv_shared_layers": 0,
    "vocab_size_per_layer_input": 300,
    "hidden_size_per_layer_input": 8,
    "laurel_rank": 8,
    "layer_types": ["sliding_attention", "full_attention"],
}
EAR = {
    "conf_num_attention_heads": 4,
    "conf_num_hidden_layers": 1,
    "input_feat_size": 8,
    "sscp_conv_channel_size": [4, 4],
}
CODES = {"embed_dim": 8, "latent_channels": 8, "base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1}


@tiny(
    "aria",
    projector_patch_to_query_dict={16: 6},
    text_config={"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1},
)
def aria(model: nn.Module) -> Inputs:
    """A few learned queries for each picture, whatever it has of patches."""
    return {
        "input_ids": run_of(6),
        "pixel_values": picture(1, 3, 56, 56),
        "pixel_mask": torch.ones(1, 56, 56, dtype=torch.bool),
    }


@tiny(
    "chameleon",
    vq_config={**CODES, "num_embeddings": 16, "resolution": 16},
    vocabulary_map={"<image>": IMAGE, **{f"IMGIMG{'AB'[i // 10]}{'ABCDEFGHIJ'[i % 10]}Z": 200 + i for i in range(16)}},
)
def chameleon(model: nn.Module) -> Inputs:
    """A token of the codebook for each square of the picture."""
    return {"input_ids": run_of(64), "pixel_values": picture(1, 3, 16, 16)}


@tiny(
    "emu3",
    vq_config={**CODES, "codebook_size": 16, "hidden_size": 32, "num_attention_heads": 1},
    vocabulary_map={
        "<image>": IMAGE,
        "<|extra_200|>": 151,
        **{f"<|visual token {i:06d}|>": 200 + i for i in range(16)},
    },
)
def emu3(model: nn.Module) -> Inputs:
    """A token of the codebook for each square, and one for the end of each row."""
    return {
        "input_ids": run_of(4 * (6 + 1)),
        "pixel_values": picture(1, 3, 8, 12),
        "image_sizes": torch.tensor([[8, 12]]),
    }


@tiny("gemma3n", text_config=TONGUE, vision_config=cells(), audio_config=EAR, vision_soft_tokens_per_image=4)
def gemma3n(model: nn.Module) -> Inputs:
    return {"input_ids": run_of(4), "pixel_values": picture(1, 3, 64, 64)}


@tiny("got_ocr2", vision_config=SAM)
@tiny("pp_chart2table", vision_config=SAM)
def convolved(model: nn.Module) -> Inputs:
    """A tower whose features two convolutions shrink to a quarter."""
    return {"input_ids": run_of(4), "pixel_values": picture(1, 3, 128, 128)}


@tiny("lighton_ocr")
def own_shape(model: nn.Module) -> Inputs:
    """A picture of its own shape on a Pixtral tower, patches merged 2 x 2."""
    return {"input_ids": run_of(6), "pixel_values": picture(1, 3, 56, 84), "image_sizes": torch.tensor([[56, 84]])}


@tiny(
    "mistral_large4",
    text_config={
        "kv_source_layers": [0, 1],
        "no_rope_layers": [1, 1],
        "indexer_types": ["full", "full"],
        "layer_types": ["indexed_attention"] * 2,
        "mlp_layer_types": ["dense", "sparse"],
        "num_key_value_heads": 4,
    },
)
def with_breaks(model: nn.Module) -> Inputs:
    """The same with a break after each row."""
    row = [IMAGE] * 3
    return {**own_shape(model), "input_ids": around(*row, OPEN, *row, CLOSE)}


@tiny(
    "shieldgemma2",
    mm_tokens_per_image=4,
    boi_token_index=154,
    eoi_token_index=155,
    text_config={"layer_types": ["sliding_attention", "full_attention"]},
)
def shieldgemma2(model: nn.Module) -> Inputs:
    nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.1)  # zero in a fresh model
    ids = run_of(4)
    return {"input_ids": ids, "pixel_values": picture(1, 3, 56, 56), "token_type_ids": (ids == IMAGE).long()}


@tiny("fuyu", patch_size=8)
def fuyu(model: nn.Module) -> Inputs:
    """Rows of patches without a tower, each row ended by a newline of its own."""
    rows = [token for _ in range(2) for token in [*[IMAGE] * 3, 151]]
    return {"input_ids": around(*rows), "image_patches": picture(1, 6, 3 * 8 * 8)}
