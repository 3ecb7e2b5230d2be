"""MiniCPM-V: `llm`, `vpm`, `resampler`; one dictionary of inputs, in which `image_bound` says where pictures stand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from .parts import LANGUAGE, Tower, pictures

UNKNOWN, N_QUERIES = 4, 6


class MiniCPMVConfig(LlamaConfig):
    """A language model's, with more in it."""

    model_type = "minicpmv"
    query_num = N_QUERIES


class Resampler(nn.Module):
    """Any number of patches to a fixed number of queries."""

    def __init__(self, width: int, kv_dim: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(N_QUERIES, width))
        self.kv_proj = nn.Linear(kv_dim, width)

    def forward(self, x: Tensor, tgt_sizes: Tensor) -> Tensor:
        x = self.kv_proj(x)
        return (self.query @ x.transpose(1, 2) * 0.3).softmax(-1) @ x


class MiniCPMV(PreTrainedModel):
    """Pictures of a row come as a list, and their places as ranges of positions."""

    config_class = MiniCPMVConfig

    def __init__(self, config: MiniCPMVConfig) -> None:
        super().__init__(config)
        self.llm = LlamaForCausalLM(config)
        self.vpm = Tower()
        self.resampler = Resampler(config.hidden_size, 24)
        self.terminators = ["<|im_end|>", "<|endoftext|>"]
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.llm.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.llm.lm_head

    def get_vllm_embedding(self, data: dict[str, Any]) -> tuple[Tensor, list[Tensor]]:
        seen = []
        for row, sizes in zip(data["pixel_values"], data["tgt_sizes"], strict=True):
            seen.append(self.resampler(self.vpm(torch.stack(list(row))), sizes) if len(row) else [])
        embeds = self.llm.model.embed_tokens(data["input_ids"])
        for row, features in enumerate(seen):
            for bound, feature in zip(data["image_bound"][row], features, strict=True):
                embeds[row, bound[0] : bound[1]] = feature
        return embeds, seen

    def forward(self, data: dict[str, Any], **kwargs: Any) -> Any:
        embeds, _ = self.get_vllm_embedding(data)
        return self.llm(input_ids=None, position_ids=data["position_ids"].long(), inputs_embeds=embeds, **kwargs)

    def _decode(self, inputs_embeds: Tensor, tokenizer: Any, attention_mask: Tensor | None, **kwargs: Any) -> Any:
        terminators = [tokenizer.convert_tokens_to_ids(each) for each in self.terminators]
        return self.llm.generate(
            inputs_embeds=inputs_embeds,
            pad_token_id=0,
            eos_token_id=terminators,
            attention_mask=attention_mask,
            **kwargs,
        )

    def generate(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Any = None,
        tgt_sizes: Any = None,
        image_bound: Any = None,
        attention_mask: Tensor | None = None,
        tokenizer: Any = None,
        **kwargs: Any,
    ) -> Any:
        data = {"input_ids": input_ids, "image_bound": image_bound, "pixel_values": pixel_values}
        with torch.inference_mode():
            embeds, _ = self.get_vllm_embedding({**data, "tgt_sizes": tgt_sizes})
            return self._decode(embeds, tokenizer, attention_mask, **kwargs)


def model() -> MiniCPMV:
    torch.manual_seed(2)
    return MiniCPMV(MiniCPMVConfig(**LANGUAGE)).eval()


def inputs(n_rows: int = 1) -> dict[str, Any]:
    """The first row has two pictures, the second one, and padding before its words."""
    run = [UNKNOWN] * N_QUERIES
    rows = [[1, 5, 10, *run, 11, 10, *run, 11, 7, 8], [0] * 8 + [1, 5, 10, *run, 11, 8, 9]]
    bounds = [torch.tensor([[3, 9], [11, 17]]), torch.tensor([[11, 17]])]
    ids = torch.tensor(rows[:n_rows])
    images = pictures(3, 2)
    return {
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "pixel_values": [[images[0], images[1]], [images[2]]][:n_rows],
        "tgt_sizes": [torch.tensor([[4, 4], [4, 4]]), torch.tensor([[4, 4]])][:n_rows],
        "image_bound": bounds[:n_rows],
    }
