"""More prompts of a family, and batches of them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .parts import Inputs

BY_POSITION = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "cross_attention_mask")


def another(inputs: Mapping[str, Tensor], seed: int = 1) -> Inputs:
    """A shorter prompt with another picture and other words: two tokens before the image are gone."""
    keep = ~torch.isin(inputs["input_ids"][0], torch.tensor([5, 6]))
    generator = torch.Generator().manual_seed(seed)
    other = {}
    for name, value in inputs.items():
        if name in BY_POSITION:
            value = value[:, keep]
        elif value.is_floating_point():
            value = torch.randn(value.shape, generator=generator)
        other[name] = value
    words = (other["input_ids"] >= 20) & (other["input_ids"] < 30)
    other["input_ids"] = torch.where(words, other["input_ids"] + 17, other["input_ids"])
    return other


def joined(prompts: Sequence[Mapping[str, Tensor]], side: str = "left") -> Inputs:
    """Several prompts as one batch, padded on a side."""
    width = max(prompt["input_ids"].shape[1] for prompt in prompts)

    def padded(value: Tensor) -> Tensor:
        missing = value.new_zeros(value.shape[0], width - value.shape[1], *value.shape[2:])
        return torch.cat([missing, value] if side == "left" else [value, missing], dim=1)

    masked = [{**prompt, "attention_mask": torch.ones_like(prompt["input_ids"])} for prompt in prompts]
    return {
        name: torch.cat([padded(p[name]) if name in BY_POSITION else p[name] for p in masked]) for name in masked[0]
    }
