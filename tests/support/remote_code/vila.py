"""VILA: `llm`, `mm_projector`, `vision_tower`; pictures in the dictionary `media`, each followed by a line break."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedConfig, PreTrainedModel

from .parts import LANGUAGE, Tokenizer, Tower, pictures

IMAGE, IGNORE_INDEX, BREAK = 91, -100, 13


class LlavaLlamaConfig(PreTrainedConfig):
    """Has `llm_cfg`, and the width of the language model."""

    model_type = "llava_llama"

    def __init__(self, llm_cfg: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.llm_cfg = llm_cfg
        self.hidden_size = None if llm_cfg is None else llm_cfg.hidden_size


class LlavaLlamaModel(PreTrainedModel):
    """Fuses text and media into embeddings, in `forward` as in `generate`."""

    config_class = LlavaLlamaConfig

    def __init__(self, config: LlavaLlamaConfig) -> None:
        super().__init__(config)
        self.llm = LlamaForCausalLM(config.llm_cfg)
        self.vision_tower = Tower()
        self.mm_projector = nn.Linear(24, config.hidden_size)
        self.tokenizer = SimpleNamespace(
            **vars(Tokenizer()), media_token_ids={"image": IMAGE}, padding_side="left", model_max_length=64
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.llm.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.llm.get_output_embeddings()

    def _encode(self, images: list[Tensor]) -> list[Tensor]:
        end = self.llm.model.embed_tokens(torch.tensor([BREAK]))
        return [torch.cat([each, end]) for each in self.mm_projector(self.vision_tower(torch.stack(images)))]

    def _embed(
        self,
        input_ids: Tensor,
        media: dict[str, list[Tensor]],
        media_config: dict[str, Any],
        labels: Tensor | None,
        attention_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        labels = torch.full_like(input_ids, IGNORE_INDEX) if labels is None else labels
        mask = torch.ones_like(input_ids).bool() if attention_mask is None else attention_mask.bool()
        left = self._encode(media["image"])
        rows, names = [], []
        for ids, targets, real in zip(input_ids, labels, mask, strict=True):
            pieces, own = [], []
            for id_, target in zip(ids[real], targets[real], strict=True):
                is_image = id_ == self.tokenizer.media_token_ids["image"]
                pieces.append(left.pop(0) if is_image else self.llm.model.embed_tokens(id_[None]))
                own.append(torch.full((len(pieces[-1]),), IGNORE_INDEX) if is_image else target[None])
            rows.append(torch.cat(pieces)[: self.tokenizer.model_max_length])
            names.append(torch.cat(own)[: self.tokenizer.model_max_length])
        if left:
            raise ValueError("Not all image embeddings are consumed!")
        longest = max(map(len, rows))
        made = torch.zeros(len(rows), longest, self.config.hidden_size)
        targets, seen = torch.full((len(rows), longest), IGNORE_INDEX), torch.zeros(len(rows), longest).bool()
        for row, piece in enumerate(rows):
            on_left = self.tokenizer.padding_side == "left"
            where = slice(longest - len(piece), longest) if on_left else slice(len(piece))
            made[row, where], targets[row, where], seen[row, where] = piece, names[row], True
        return made, targets, seen

    def forward(
        self,
        input_ids: Tensor | None = None,
        media: dict[str, list[Tensor]] | None = None,
        images: Tensor | None = None,
        media_config: dict[str, Any] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if inputs_embeds is None:
            inputs_embeds, _, attention_mask = self._embed(input_ids, media, media_config, None, attention_mask)
        # not `self.llm(...)`, so that hooks on the language model itself do not see this
        return self.llm.forward(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )

    @torch.inference_mode()
    def generate(
        self,
        input_ids: Tensor | None = None,
        media: dict[str, list[Tensor]] | None = None,
        media_config: dict[str, Any] | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        embeds, _, mask = self._embed(input_ids, media, media_config, None, attention_mask)
        return self.llm.generate(inputs_embeds=embeds, attention_mask=mask, **kwargs)


def model() -> LlavaLlamaModel:
    torch.manual_seed(3)
    return LlavaLlamaModel(LlavaLlamaConfig(LlamaConfig(**LANGUAGE))).eval()


def inputs(n_rows: int = 1) -> dict[str, Any]:
    """The first row has two pictures; the second one, and padding before its words."""
    ids = torch.tensor([[1, IMAGE, 14, IMAGE, 7, 8, 9], [0, 0, 0, 1, 5, IMAGE, 8]][:n_rows])
    media = {"image": list(pictures(2 if n_rows == 1 else 3, 3))}
    return {"input_ids": ids, "attention_mask": ids != 0, "media": media, "media_config": {"image": {}}}
