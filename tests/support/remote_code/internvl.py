"""InternVLChatModel: `llm_config`, `mlp1` after `vision_model`; generates from embeddings by its language model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedConfig, PreTrainedModel

from .parts import LANGUAGE, N_PATCHES, Tower, pictures

IMAGE = 90


class InternVLChatConfig(PreTrainedConfig):
    """Has `llm_config` and no text config by the usual name."""

    model_type = "internvl_chat"

    def __init__(self, llm_config: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.llm_config = llm_config


class InternVLChatModel(PreTrainedModel):
    """Its `forward` needs `image_flags`, which its `generate` does not take."""

    config_class = InternVLChatConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.vision_model = Tower()
        self.mlp1 = nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 32), nn.GELU(), nn.Linear(32, 32))
        self.language_model = LlamaForCausalLM(config.llm_config)
        self.img_context_token_id: int | None = None  # until somebody says it
        self.post_init()

    def embedded(self, features: Tensor, input_ids: Tensor) -> Tensor:
        embeds = self.language_model.get_input_embeddings()(input_ids)
        return embeds.masked_scatter((input_ids == self.img_context_token_id)[..., None], features.to(embeds))

    def extract_feature(self, pixel_values: Tensor) -> Tensor:
        return self.mlp1(self.vision_model(pixel_values))

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        image_flags: Tensor | None = None,
        past_key_values: Any = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
    ) -> Any:
        features = self.extract_feature(pixel_values)[image_flags.squeeze(-1) == 1]
        return self.language_model(
            inputs_embeds=self.embedded(features, input_ids),
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
        )

    @torch.no_grad()
    def generate(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        visual_features: Tensor | None = None,
        generation_config: Any = None,
        **kwargs: Any,
    ) -> Any:
        features = self.extract_feature(pixel_values) if visual_features is None else visual_features
        return self.language_model.generate(
            inputs_embeds=self.embedded(features, input_ids),
            attention_mask=attention_mask,
            generation_config=generation_config,
            use_cache=True,
            **kwargs,
        )

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()


def model() -> InternVLChatModel:
    torch.manual_seed(0)
    made = InternVLChatModel(InternVLChatConfig(LlamaConfig(**LANGUAGE))).eval()
    made.img_context_token_id = IMAGE
    return made


def inputs(n_rows: int = 1) -> dict[str, Any]:
    """One picture a row; the second row has fewer words, and padding before them."""
    rows = [[1, 5, 6, *[IMAGE] * N_PATCHES, 7, 8, 9], [0, 0, 1, 5, *[IMAGE] * N_PATCHES, 8, 9]][:n_rows]
    ids = torch.tensor(rows)
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "pixel_values": pictures(n_rows)}
