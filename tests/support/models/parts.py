"""What the builders share: the registry, small configs, and the form of a prompt."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

Inputs = dict[str, Tensor]
Builder = Callable[[], tuple[nn.Module, Inputs]]

BOS, EOS, PAD, IMAGE, VIDEO, OPEN, CLOSE = 1, 2, 0, 150, 151, 152, 153
TEXT = {
    "vocab_size": 200,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
NO_HEAD_DIM = {key: value for key, value in TEXT.items() if key != "head_dim"}
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL = {**TOWER, "image_size": 56, "patch_size": 14}  # 4 x 4 patches
MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
PINPOINTS = [[56, 112], [112, 56], [112, 112]]

FAMILIES: dict[str, Builder] = {}


def family(build: Builder) -> Builder:
    """Register a builder."""
    FAMILIES[build.__name__] = seeded(build)
    return FAMILIES[build.__name__]


def seeded(build: Builder) -> Builder:
    """The builder with a fixed seed, evaluation mode, sharpened weights, no early end of generation."""

    @wraps(build)
    def built() -> tuple[nn.Module, Inputs]:
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            model, inputs = build()
            for weight in model.parameters():
                if weight.ndim >= 2:
                    weight.mul_(3)
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = PAD
        return model.eval(), inputs

    return built


def clip() -> Any:
    return hf.CLIPVisionConfig(**SMALL, projection_dim=32)


def siglip(**options: Any) -> Any:
    return hf.SiglipVisionConfig(**SMALL, vision_use_head=False, **options)


def pixtral() -> Any:
    return hf.PixtralVisionConfig(**{**SMALL, "image_size": 112})


def around(*image: int) -> Tensor:
    """A prompt with the image's tokens between text: [1, position]."""
    return torch.tensor([[BOS, 5, 6, 7, 8, *image, 20, 21, 22, 23, 24, 25]])


def picture(*shape: int) -> Tensor:
    return torch.randn(*shape)
