"""What the viewer shows: the attention of some query rows of one prompt row, and the sinks of each layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import HookError, PromptError, ScoreError
from ..hooks.heads import check_layer
from ..hooks.points import Read, Reader
from ..hooks.results import Generation, Run
from ..prompts.prompt import Prompt
from ..prompts.rows import RowsLike, bind_rows
from ..sinks import SinkRule
from .sink_tokens import Sinks, phi_read, sink_rule, sinks_in

if TYPE_CHECKING:
    from ..lens import Lens

MAX_VALUES = 2**26  # probabilities on one page: at a byte each, the most that a browser should have to open
PATTERN = "viewer pattern"


@dataclass(frozen=True, eq=False)
class ShownAttention:
    """Attention of some query rows of one prompt row.

    Attributes:
        values: probabilities, on the CPU in fp32; NaN for heads that a layer does not have.
        queries: positions of the query rows, ascending.
        layers: the layers, ascending.
        heads: the number of each head.
        sinks: of the same layers.
        next_tokens: the likeliest next tokens after the prompt row, as (text, probability); empty where not known.
        omitted: which layers of the model have no attention over tokens, and are left out; "" where none is.
    """

    values: Float[Tensor, "query layer head position"]
    queries: tuple[int, ...]
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    sinks: Sinks
    next_tokens: tuple[tuple[str, float], ...] = ()
    omitted: str = ""


def from_lens(
    lens: Lens,
    prompt: Prompt,
    rows: Sequence[int],
    queries: RowsLike,
    layers: Sequence[int] | None,
    heads: Sequence[int] | None,
    sinks: bool | SinkRule,
    beside: Sequence[Reader] = (),
) -> tuple[list[ShownAttention], Run]:
    """Read some prompt rows from a model, in one forward pass; the last prompt token is always among the queries.

    Returns:
        What was read of each row, and the run, which holds what `beside` has read too.

    Raises:
        HookError: no such layer, head or row, or layers whose keys are no tokens.
        PromptError: no such prompt row.
        ScoreError: more numbers than a page should hold.
    """
    chosen = chosen_layers(lens, layers)
    masks = [query_mask(prompt, row, queries) for row in rows]
    asked = torch.stack(masks).any(0)
    n_heads = lens.n_heads if heads is None else len(heads)
    check_size(int(asked.sum()), len(chosen), n_heads, prompt.n_tokens)
    rule, about = sink_rule(lens, sinks)
    reads = [Read("pattern", chosen, heads, asked, name=PATTERN)]
    run = lens.run(prompt, read=[*reads, *([phi_read(rule, chosen)] if rule else []), *beside], logits="last")
    numbers = tuple(range(n_heads)) if heads is None else tuple(heads)
    shown = []
    for row in rows:
        found = Sinks(sinks_in(run, rule, row) if rule else None, about)
        values, positions = stacked(run, PATTERN, chosen, row, n_heads, prompt.n_tokens)
        words, left = next_tokens(lens, run, row), _omitted(lens, layers)
        shown.append(ShownAttention(values, positions, tuple(chosen), numbers, found, words, left))
    return shown, run


def chosen_layers(lens: Lens, layers: Sequence[int] | None) -> list[int]:
    """The layers to show, ascending; HookError where one has no attention over tokens."""
    possible = lens.shape.self_attention
    if layers is None:
        return possible
    wanted = sorted({check_layer(int(layer), lens.n_layers) for layer in layers})
    wrong = [layer for layer in wanted if layer not in possible]
    if wrong or not wanted:
        raise HookError(
            f"layers {wrong or 'none'} have no attention over tokens to show\n  layers that have: {possible}"
        )
    return wanted


def query_mask(prompt: Prompt, row: int, queries: RowsLike) -> Bool[Tensor, "batch position"]:
    """The query rows of one prompt row, its last token always among them.

    Raises:
        HookError: no such row scope, or one that selects nothing but what is yet to be generated.
        PromptError: no such prompt row.
    """
    check_row(prompt, row)
    bound = bind_rows(queries, prompt)
    mask = torch.zeros_like(bound.prompt)
    mask[row] = bound.prompt[row] & prompt.mask("all")[row]
    if not bool(mask.any()):
        raise HookError(
            f"queries {queries!r} select no token of prompt row {row}\n"
            '  a view shows the prompt: take "last", "question", "text", or positions of it'
        )
    mask[row] |= prompt.mask("last")[row]
    return mask


def check_row(prompt: Prompt, row: int) -> None:
    """PromptError for a batch row that is not there."""
    if not 0 <= row < prompt.n_rows:
        raise PromptError(f"row {row} is out of range: the prompt has rows 0 to {prompt.n_rows - 1}")


def check_size(n_queries: int, n_layers: int, n_heads: int, n_keys: int) -> None:
    """ScoreError for more numbers than a page should hold."""
    n_values = n_queries * n_layers * n_heads * n_keys
    if n_values > MAX_VALUES:
        raise ScoreError(
            f"{n_queries} queries x {n_layers} layers x {n_heads} heads x {n_keys} tokens are {n_values / 1e6:,.0f} "
            f"million numbers, a page holds {MAX_VALUES / 1e6:.0f} million\n"
            '  show fewer queries (queries="last"), layers or heads'
        )


def check_values(n_values: int) -> None:
    """ScoreError for a page of several rows or runs that hold more numbers than it should."""
    if n_values > MAX_VALUES:
        raise ScoreError(
            f"these rows and runs are {n_values / 1e6:,.0f} million numbers, "
            f"a page holds {MAX_VALUES / 1e6:.0f} million\n"
            "  show one row, fewer queries, layers or heads"
        )


def stacked(
    run: Run | Generation, name: str, layers: Sequence[int], row: int, n_heads: int, n_keys: int
) -> tuple[Float[Tensor, "query layer head position"], tuple[int, ...]]:
    """The patterns of one prompt row over the first keys (a static cache has more), and its query rows' positions."""
    positions = run.positions[name][row].cpu()
    real = positions >= 0
    values = torch.full((len(layers), n_heads, int(real.sum()), n_keys), torch.nan)
    for index, layer in enumerate(layers):
        pattern = run.reads[name, layer][row].detach().float().cpu()
        values[index, : pattern.shape[0]] = pattern[:, real, :n_keys]
    return values.permute(2, 0, 1, 3).contiguous(), tuple(positions[real].tolist())


def next_tokens(lens: Lens, run: Run, row: int, n: int = 3) -> tuple[tuple[str, float], ...]:
    """The likeliest next tokens; none without a processor, which has the words."""
    if lens.processor is None:
        return ()
    of_row = run.logits[row]
    last = 0 if of_row.shape[0] == 1 else int(run.prompt.mask("last")[row].nonzero())
    chances, ids = of_row[last].detach().float().cpu().softmax(-1).topk(n)
    texts = (lens.adapter.tokenizer.decode([token]) for token in ids.tolist())
    return tuple((text.strip() or repr(text), chance) for text, chance in zip(texts, chances.tolist(), strict=True))


def _omitted(lens: Lens, layers: Sequence[int] | None) -> str:
    without = [layer for layer in range(lens.n_layers) if layer not in lens.shape.self_attention]
    return f"Left out: layers {without}, which do not attend to tokens." if without and layers is None else ""
