"""The architecture, a stock LlavaForConditionalGeneration of 1.3 million parameters, and its files."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from lmm_lens.bundled.shapes import VARIANTS
from lmm_lens.bundled.shapes.processor import build_processor
from lmm_lens.bundled.shapes.scenes import PATCH, SIZE
from lmm_lens.bundled.shapes.vocabulary import BOS, EOS, IMAGE, PAD, VOCABULARY
from lmm_lens.bundled.worlds import N_PATCHES

SINK_DIMS = (5, 77)
SINK_THRESHOLD = 7.0  # phi of sinks lies above it and of every other token below; phi <= sqrt(128) = 11.3


def description(variant: str) -> dict[str, Any]:
    """What config.json says of a checkpoint under "lmm_lens"."""
    return {
        "name": "shapes-llava",
        "variant": variant,
        "sink_dims": list(SINK_DIMS) if variant == "sinks" else [],
        "sink_threshold": SINK_THRESHOLD,
    }


def build_config() -> LlavaConfig:
    special: Any = {
        "bos_token_id": VOCABULARY[BOS],
        "eos_token_id": VOCABULARY[EOS],
        "pad_token_id": VOCABULARY[PAD],
    }
    vision = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=96,
        hidden_act="gelu",
    )
    text = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=512,
        initializer_range=0.05,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        **special,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=VOCABULARY[IMAGE],
        image_seq_length=N_PATCHES,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=False,
        **special,
    )


def build_model(seed: int, attention: str = "sdpa") -> LlavaForConditionalGeneration:
    """An untrained model in fp32; the seed fixes its weights."""
    torch.manual_seed(seed)
    model: LlavaForConditionalGeneration = LlavaForConditionalGeneration._from_config(
        build_config(), attn_implementation=attention
    )
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, getattr(model.config, name))
    model.generation_config._from_model_config = False
    return model


def save_checkpoint(state: dict[str, torch.Tensor], variant: str, folder: Path) -> None:
    """Write model and processor files of one variant, weights in fp16."""
    model = build_model(0)
    model.load_state_dict(state)
    model.config.lmm_lens = description(variant)
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes it for the owner alone
    build_processor().save_pretrained(folder)


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def write_checksums(out: Path) -> None:
    """SHA256SUMS of all checkpoint files under `out`, as sha256sum -c takes them."""
    files = sorted(file for variant in VARIANTS for file in (out / variant).glob("*"))
    lines = [f"{digest(file)}  {file.relative_to(out).as_posix()}\n" for file in files]
    (out / "SHA256SUMS").write_text("".join(lines))
