"""The architecture: a stock LlavaForConditionalGeneration, SmolLM2-135M-Instruct behind a CLIP tower of 2 million.

What was trained are `parts`: the tower and the projector by their names in the model; "soft_prompt" [8, d_model], the
input embeddings of the soft prompt's tokens; where the language model was trained too, "adapter.NAME.A" [rank, in] and
"adapter.NAME.B" [out, rank], whose product times 2 is added to its weight NAME.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmm_lens.bundled.emoji.processor import IMAGE, SOFT
from lmm_lens.bundled.emoji.scenes import PATCH, SIZE
from lmm_lens.bundled.worlds import N_PATCHES

LAYERS, WIDTH = 4, 192  # of the tower
ADAPTER_SCALE = 2.0  # alpha / rank
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


# What find_sinks finds on prompts with pictures; tests/emoji compares.
SINKS = {"frozen": ((507,), 23.67), "adapted": ((507,), 23.65)}


def build_config(text_config: Any, tokenizer: Any) -> Any:
    """lm_head is not tied to the input embeddings: the trained rows of the soft prompt would become likely answers."""
    from transformers import CLIPVisionConfig, LlavaConfig

    text_config.tie_word_embeddings = False
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=WIDTH // 32,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=WIDTH,
        hidden_act="gelu",
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text_config,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=N_PATCHES,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=False,
        **{name: getattr(tokenizer, name) for name in SPECIAL},
    )


def build_model(language_model: Path, tokenizer: Any) -> Any:
    """The model with an untrained tower, in fp32 and eval mode; torch's seed fixes the tower."""
    from transformers import LlamaForCausalLM, LlavaForConditionalGeneration

    language = LlamaForCausalLM.from_pretrained(language_model, dtype=torch.float32)
    model = LlavaForConditionalGeneration(build_config(language.config, tokenizer))
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.lm_head.weight = torch.nn.Parameter(language.lm_head.weight.detach().clone())
    return _ready(model, tokenizer)


def assemble(language_model: Path, tokenizer: Any, parts: Mapping[str, Tensor], variant: str) -> Any:
    """The trained model, in fp32 and eval mode; quicker than to build one, for nothing is drawn at random."""
    from safetensors.torch import load_file
    from transformers import LlamaConfig, LlavaForConditionalGeneration

    config = build_config(LlamaConfig.from_pretrained(language_model), tokenizer)
    dims, threshold = SINKS[variant]
    config.lmm_lens = {
        "name": "emoji-llava",
        "variant": variant,
        "sink_dims": list(dims),
        "sink_threshold": threshold,
    }
    state = load_file(language_model / "model.safetensors")
    state = {name.replace("model.", "model.language_model.", 1): value for name, value in state.items()}
    state["lm_head.weight"] = state["model.language_model.embed_tokens.weight"].clone()
    state |= {name: value.float() for name, value in parts.items() if is_eye(name)}
    model = LlavaForConditionalGeneration.from_pretrained(None, config=config, state_dict=state, dtype=torch.float32)
    fill(model, parts, soft_ids(tokenizer))
    model.name_or_path = "lmm-lens/emoji-llava" + ("" if variant == "frozen" else f"-{variant}")
    return _ready(model, tokenizer)


def _ready(model: Any, tokenizer: Any) -> Any:
    for name in SPECIAL:
        setattr(model.generation_config, name, getattr(tokenizer, name))
    model.generation_config._from_model_config = False
    return model.eval()


def soft_ids(tokenizer: Any) -> list[int]:
    return list(tokenizer.convert_tokens_to_ids(list(SOFT)))


def is_eye(name: str) -> bool:
    """Whether a tensor of the model belongs to the tower or the projector."""
    return "vision_tower" in name or "multi_modal_projector" in name


@torch.no_grad()
def fill(model: Any, parts: Mapping[str, Tensor], soft: list[int]) -> None:
    """Put the trained parts into a model, the adapter added to the weights."""
    own = dict(model.state_dict())
    expected = {name for name in own if is_eye(name) and "position_ids" not in name}
    given = {name for name in parts if is_eye(name)}
    if given != expected:
        raise ValueError(f"tower and projector differ from the model's: {sorted(given ^ expected)[:4]}")
    for name in given:
        own[name].copy_(parts[name])
    language = model.model.language_model
    language.embed_tokens.weight[soft] = parts["soft_prompt"].to(language.embed_tokens.weight.dtype)
    weights = dict(language.named_parameters())
    for name in parts:
        if name.startswith("adapter.") and name.endswith(".A"):
            down, up = parts[name].float(), parts[name[:-1] + "B"].float()
            weights[name.removeprefix("adapter.").removesuffix(".A")] += ADAPTER_SCALE * (up @ down)
