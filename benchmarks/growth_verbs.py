"""What `benchmarks.growth` measures: a model and a prompt of any size, and what is done with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, LlamaConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lmm_lens import (
    VAR,
    AblateHeads,
    HeadSet,
    Knockout,
    Lens,
    Prompt,
    attention_map,
    direct_attribution,
    logit_lens,
    score_heads,
)

from .model import BOS, SINK_DIMS, given_pictures

WIDTH = 128
QUARTER = "tokens, a quarter edited"  # an axis on which all is the same but for what edits rows


@dataclass(frozen=True)
class Point:
    """A model and a prompt.

    Attributes:
        tokens: of each row, pictures as many as there is room for before `after`.
        layers, heads: of the decoder, whose width stays.
        batch: rows.
        new: tokens that are generated.
        after: tokens behind the last picture; 0 for a quarter of the tokens.
    """

    tokens: int = 1000
    layers: int = 2
    heads: int = 8
    batch: int = 1
    new: int = 8
    after: int = 90

    def build(self) -> tuple[Lens, Prompt]:
        """The lens and the prompt; the picture's features are given, and hold sinks."""
        text = LlamaConfig(
            vocab_size=1000,
            hidden_size=WIDTH,
            intermediate_size=352,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            max_position_embeddings=1 << 15,
            bos_token_id=BOS,
        )
        return given_pictures(text, self.batch, self.tokens, self.n_after)

    @property
    def n_after(self) -> int:
        """Tokens behind the last picture, which are the rows that are edited."""
        return self.after or self.tokens // 4


VAR_HERE = VAR(
    sink_dims=tuple(dim % WIDTH for dim in SINK_DIMS),
    sink_threshold=8,
    min_nonsink_ratio=0,
    min_visual_mass=0,
    first_layer=0,
    skip_last_layer=False,
)


Verb = Callable[[Lens, Prompt, Point], Any]
"""What is done with a lens and a prompt."""


def plain(lens: Lens, prompt: Prompt, point: Point) -> Any:
    """A pass of transformers, without us."""
    with torch.no_grad():
        return lens.model(**prompt.inputs, use_cache=False, logits_to_keep=1)


def plain_generate(lens: Lens, prompt: Prompt, point: Point) -> Any:
    """New tokens by transformers."""
    with torch.no_grad():
        return lens.model.generate(**prompt.inputs, max_new_tokens=point.new, do_sample=False, pad_token_id=0)


def rows_twice(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
    """Attention by the fused kernel, and the last rows once more, few at a time, or masks would be large."""
    out = sdpa_attention_forward(module, query, key, value, mask, **options)
    n_tokens = query.shape[2]
    for start in range(n_tokens - N_TWICE[0], n_tokens, 64) if n_tokens > 1 else ():
        stop = min(start + 64, n_tokens)
        seen = torch.ones(stop - start, stop, dtype=torch.bool).tril(start)
        keys, values = key[:, :, :stop], value[:, :, :stop]
        nn.functional.scaled_dot_product_attention(query[:, :, start:stop], keys, values, attn_mask=seen)
    return out


N_TWICE = [0]  # rows that `rows_twice` computes twice
AttentionInterface.register("rows_twice", rows_twice)
AttentionMaskInterface.register("rows_twice", sdpa_mask)


@contextmanager
def twice(lens: Lens, point: Point) -> Iterator[None]:
    """Inside, the model's fused kernel computes the rows twice that are edited elsewhere."""
    N_TWICE[0] = point.n_after
    lens.model.set_attn_implementation({"text_config": "rows_twice"})
    try:
        yield
    finally:
        lens.model.set_attn_implementation({"text_config": "sdpa"})


def plain_twice(lens: Lens, prompt: Prompt, point: Point) -> Any:
    """A pass of transformers with these rows twice."""
    with twice(lens, point):
        return plain(lens, prompt, point)


def plain_generate_twice(lens: Lens, prompt: Prompt, point: Point) -> Any:
    """New tokens by transformers, these rows of the prompt twice."""
    with twice(lens, point):
        return plain_generate(lens, prompt, point)


def run(*edits: Any) -> Verb:
    """A pass of ours."""
    return lambda lens, prompt, point: lens.run(prompt, edits, logits="last")


def generate(*edits: Any) -> Verb:
    """New tokens by us."""
    return lambda lens, prompt, point: lens.generate(prompt, edits, max_new_tokens=point.new)


def ablate(lens: Lens, prompt: Prompt, point: Point) -> Any:
    """Every second head zeroed behind the picture."""
    heads = [(layer, head) for layer in range(lens.n_layers) for head in range(0, lens.n_heads, 2)]
    edit = AblateHeads(HeadSet(heads, lens.n_layers, lens.n_heads), "zero", "after_image")
    return lens.run(prompt, [edit], logits="last")


KNOCKOUT = Knockout("image", "after_image")
PLAIN, TWICE = "plain forward", "plain forward, edited rows twice"
GENERATED, GENERATED_TWICE = "plain generation", "plain generation, edited rows twice"
OF_A_PASS: dict[str, Verb] = {
    PLAIN: plain,
    TWICE: plain_twice,
    "`run`": run(),
    "`score_heads`": lambda lens, prompt, point: score_heads(lens, prompt, metric="visual_mass"),
    "`attention_map`": lambda lens, prompt, point: attention_map(lens, prompt),
    "`logit_lens`, last row": lambda lens, prompt, point: logit_lens(lens, prompt, rows="last"),
    "`direct_attribution`": lambda lens, prompt, point: direct_attribution(lens, prompt, 5, 6, by="head"),
    "VAR": run(VAR_HERE),
    "`Knockout`": run(KNOCKOUT),
    "`AblateHeads`": ablate,
}
OF_A_GENERATION: dict[str, Verb] = {
    GENERATED: plain_generate,
    GENERATED_TWICE: plain_generate_twice,
    "`generate`": generate(),
    "`generate`: VAR": generate(VAR_HERE),
    "`generate`: `Knockout`": generate(KNOCKOUT),
}
VERBS = OF_A_PASS | OF_A_GENERATION
OURS = [name for name in VERBS if name not in (PLAIN, TWICE, GENERATED, GENERATED_TWICE)]
BY_ROWS = (
    PLAIN,
    TWICE,
    "VAR",
    "`Knockout`",
    "`AblateHeads`",
    *(name for name in OF_A_GENERATION if name != "`generate`"),
)
"""What depends on how many rows are edited, and its bases."""
ONE_ROW = ("`attention_map`", "`logit_lens`, last row", "`direct_attribution`")
"""What takes one row of a batch."""


def base_of(name: str) -> str:
    """What a verb is compared with."""
    return PLAIN if name in OF_A_PASS else GENERATED


def twice_of(name: str) -> str:
    """The same with the rows twice that a verb edits."""
    return TWICE if name in OF_A_PASS else GENERATED_TWICE


def measures(axis: str, name: str) -> bool:
    """Whether a verb has anything to do with an axis."""
    if name == GENERATED_TWICE:
        return axis == QUARTER
    if axis == QUARTER:
        return name in BY_ROWS
    return name in OF_A_GENERATION if axis == "new" else axis != "batch" or name not in ONE_ROW
