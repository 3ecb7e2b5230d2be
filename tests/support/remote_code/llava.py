"""The original LLaVA: -200 in `input_ids` becomes a picture's features inside `forward`, rows are padded anew."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel, PreTrainedConfig

from .parts import EDGE, LANGUAGE, PATCH, Tower, pictures

IMAGE_TOKEN_INDEX, IGNORE_INDEX = -200, -100


class LlavaConfig(LlamaConfig):
    """A language model's, with more in it."""

    model_type = "llava_llama"


class VisionTower(Tower):
    """Knows the config of the encoder in it."""

    config = PreTrainedConfig(image_size=EDGE, patch_size=PATCH)


class LlavaLlamaModel(LlamaModel):
    """Holds the vision tower beside the layers."""

    config_class = LlavaConfig

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__(config)
        self.vision_tower = VisionTower()
        self.mm_projector = nn.Linear(24, config.hidden_size)


class LlavaLlamaForCausalLM(LlamaForCausalLM):
    """Takes `images`, and `inputs` in place of `input_ids` in its `generate`."""

    config_class = LlavaConfig

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__(config)
        self.model = LlavaLlamaModel(config)
        self.post_init()

    def get_model(self) -> LlavaLlamaModel:
        return self.model

    def get_vision_tower(self) -> VisionTower:
        return self.model.vision_tower

    def encode_images(self, images: Tensor) -> Tensor:
        return self.model.mm_projector(self.model.vision_tower(images))

    def prepare_inputs_labels_for_multimodal(
        self,
        input_ids: Tensor | None,
        position_ids: Tensor | None,
        attention_mask: Tensor | None,
        past_key_values: Any,
        labels: Tensor | None,
        images: Tensor | None,
        image_sizes: Any = None,
    ) -> tuple[Any, ...]:
        if images is None or input_ids.shape[1] == 1:
            return input_ids, position_ids, attention_mask, past_key_values, None, labels
        features = iter(self.encode_images(images))
        rows, row_labels = [], []
        for row, ids in enumerate(input_ids):
            real = torch.ones_like(ids).bool() if attention_mask is None else attention_mask[row].bool()
            targets = torch.full_like(ids, IGNORE_INDEX) if labels is None else labels[row]
            pieces, names = [], []
            for id_, target in zip(ids[real], targets[real], strict=True):
                if id_ == IMAGE_TOKEN_INDEX:
                    pieces.append(next(features))
                    names.append(torch.full((len(pieces[-1]),), IGNORE_INDEX))
                else:
                    pieces.append(self.model.embed_tokens(id_[None]))
                    names.append(target[None])
            rows.append(torch.cat(pieces))
            row_labels.append(torch.cat(names))
        longest = max(map(len, rows))
        embeds = torch.zeros(len(rows), longest, rows[0].shape[1])
        names = torch.full((len(rows), longest), IGNORE_INDEX)
        mask = torch.zeros(len(rows), longest, dtype=torch.long)
        on_left = getattr(self.config, "tokenizer_padding_side", "right") == "left"
        for row, piece in enumerate(rows):
            where = slice(longest - len(piece), longest) if on_left else slice(len(piece))
            embeds[row, where], names[row, where], mask[row, where] = piece, row_labels[row], 1
        mask = None if attention_mask is None else mask
        return None, None, mask, past_key_values, embeds, None if labels is None else names

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        images: Tensor | None = None,
        image_sizes: Any = None,
        **kwargs: Any,
    ) -> Any:
        if inputs_embeds is None:
            input_ids, position_ids, attention_mask, past_key_values, inputs_embeds, labels = (
                self.prepare_inputs_labels_for_multimodal(
                    input_ids, position_ids, attention_mask, past_key_values, labels, images
                )
            )
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            **kwargs,
        )

    @torch.no_grad()
    def generate(
        self, inputs: Tensor | None = None, images: Tensor | None = None, image_sizes: Any = None, **kwargs: Any
    ) -> Any:
        if "inputs_embeds" in kwargs:
            raise NotImplementedError("`inputs_embeds` is not supported")
        mask = kwargs.pop("attention_mask", None)
        made = self.prepare_inputs_labels_for_multimodal(inputs, None, mask, None, None, images, image_sizes)
        return super().generate(attention_mask=made[2], inputs_embeds=made[4], **kwargs)


def model() -> LlavaLlamaForCausalLM:
    torch.manual_seed(1)
    made = LlavaLlamaForCausalLM(LlavaConfig(**LANGUAGE)).eval()
    made.config.tokenizer_padding_side = "left"
    return made


def inputs(n_rows: int = 1) -> dict[str, Any]:
    """One picture a row; the second row has fewer words, and padding behind them."""
    ids = torch.tensor([[1, 5, 6, IMAGE_TOKEN_INDEX, 7, 8, 9], [1, 5, IMAGE_TOKEN_INDEX, 8, 9, 0, 0]][:n_rows])
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "images": pictures(n_rows, 1)}
