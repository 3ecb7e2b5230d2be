"""What the imitations are made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

WORDS = {
    0: "<unk>",
    1: "<s>",
    2: "<|im_end|>",
    3: "<|endoftext|>",
    5: "user",
    6: ":",
    7: "what",
    8: "?",
    9: "answer",
    90: "<im_patch>",
    92: "<im_col>",
}
LANGUAGE = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.25,
}
EDGE, PATCH = 28, 7
SIDE = EDGE // PATCH
N_PATCHES = SIDE**2


class Tower(nn.Module):
    """Pixels of one or more square pictures to one vector a patch, [picture, patch, width]."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, PATCH, PATCH)

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.tanh(self.patches(pixels)).flatten(2).transpose(1, 2)


@dataclass
class Tokenizer:
    """As much of one as remote code asks of it."""

    bos_token_id: int = 1
    bos_token: str = "<s>"
    pad_token_id: int = 0

    def convert_ids_to_tokens(self, ids: int | list[int]) -> str | list[str]:
        return [WORDS.get(each, f"w{each}") for each in ids] if isinstance(ids, list) else WORDS.get(ids, f"w{ids}")

    def convert_tokens_to_ids(self, tokens: str | list[str]) -> int | list[int]:
        known = {word: id_ for id_, word in WORDS.items()}
        return [known.get(each, 0) for each in tokens] if isinstance(tokens, list) else known.get(tokens, 0)

    def batch_decode(self, rows: Tensor, skip_special_tokens: bool = False) -> list[str]:
        return [" ".join(self.convert_ids_to_tokens([int(x) for x in row])) for row in rows]

    def decode(self, ids: list[int], **options: bool) -> str:
        return " ".join(self.convert_ids_to_tokens(list(ids)))


def pictures(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, EDGE, EDGE, generator=torch.Generator().manual_seed(seed))


def rotated(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary embedding of [batch, head, position, width], at positions [batch, position]."""
    half = x.shape[-1] // 2
    angles = positions[:, None, :, None].float() * 100.0 ** -(torch.arange(half) / half)
    one, two = x[..., :half], x[..., half:]
    return torch.cat([one * angles.cos() - two * angles.sin(), two * angles.cos() + one * angles.sin()], -1)


def bias(mask: Tensor | None, n_queries: int, n_keys: int) -> Tensor:
    """Added to the scores, [batch | 1, 1, query, key]: the lowest number where a key lies ahead or is padding."""
    seen = torch.ones(n_queries, n_keys).tril(n_keys - n_queries).bool()[None, None]
    if mask is not None:
        seen = seen & mask[:, None, None, :n_keys].bool()
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)


class Norm(nn.Module):
    """Root mean square normalisation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
