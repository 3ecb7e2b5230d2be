"""Small classes with the structure of models that come as remote code, beside transformers' own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedConfig, PreTrainedModel

IMAGE, N_PATCHES = 90, 16
LANGUAGE = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


class InternVLChatConfig(PreTrainedConfig):
    """Has `llm_config` and no text config by the usual name."""

    model_type = "internvl_chat"

    def __init__(self, llm_config: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.llm_config = llm_config


class InternVLChatModel(PreTrainedModel):
    """Generates from embeddings, by the language model inside it."""

    config_class = InternVLChatConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.vision_model = nn.Conv2d(3, 24, 7, 7)  # 28 x 28 pixels, 4 x 4 patches
        self.mlp1 = nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 32), nn.GELU(), nn.Linear(32, 32))
        self.language_model = LlamaForCausalLM(config.llm_config)
        self.img_context_token_id = IMAGE
        self.post_init()

    def embedded(self, pixel_values: Tensor, input_ids: Tensor) -> Tensor:
        embeds = self.language_model.get_input_embeddings()(input_ids)
        seen = self.mlp1(self.vision_model(pixel_values).flatten(2).transpose(1, 2))
        return embeds.masked_scatter((input_ids == IMAGE)[..., None], seen.to(embeds))

    def forward(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> Any:
        embeds = self.embedded(pixel_values, input_ids)
        return self.language_model(inputs_embeds=embeds, attention_mask=attention_mask, **kwargs)

    @torch.no_grad()
    def generate(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> Any:
        embeds = self.embedded(pixel_values, input_ids)
        return self.language_model.generate(inputs_embeds=embeds, attention_mask=attention_mask, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()


def internvl_chat() -> tuple[InternVLChatModel, dict[str, Tensor]]:
    """A tiny random one, and inputs whose visual tokens stand each by itself."""
    torch.manual_seed(0)
    model = InternVLChatModel(InternVLChatConfig(LlamaConfig(**LANGUAGE))).eval()
    ids = torch.tensor([[1, 5, 6, *[IMAGE] * N_PATCHES, 7, 8, 9]])
    return model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(1, 3, 28, 28)}
