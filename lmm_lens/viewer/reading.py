"""What the viewer shows: the attention of some query rows of one prompt row, and the sinks of each layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import HookError, PromptError, ScoreError
from ..hooks.heads import check_layer
from ..hooks.points import Read
from ..hooks.results import Run
from ..prompts.prompt import Prompt
from ..prompts.rows import RowsLike, bind_rows
from ..sinks import SinkRule
from .sink_tokens import Sinks, phi_read, sink_rule, sinks_in, sinks_of_run

if TYPE_CHECKING:
    from ..lens import Lens

MAX_VALUES = 2**26  # probabilities on one page: at a byte each, the most that a browser should have to open
PATTERN = "viewer pattern"
OVER_ONE = 1e-2  # how far a probability in half precision may lie over 1


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
    row: int,
    queries: RowsLike,
    layers: Sequence[int] | None,
    heads: Sequence[int] | None,
    sinks: bool | SinkRule,
) -> ShownAttention:
    """Read it from a model, in one forward pass; the last prompt token is always among the queries.

    Raises:
        HookError: no such layer, head or row, or layers whose keys are no tokens.
        PromptError: no such prompt row.
        ScoreError: more numbers than a page should hold.
    """
    chosen = chosen_layers(lens, layers)
    rows = query_mask(prompt, row, queries)
    n_heads = lens.n_heads if heads is None else len(heads)
    check_size(int(rows.sum()), len(chosen), n_heads, prompt.n_tokens)
    rule, about = sink_rule(lens, sinks)
    reads = [Read("pattern", chosen, heads, rows, name=PATTERN)]
    run = lens.run(prompt, read=[*reads, *([phi_read(rule, chosen)] if rule else [])], logits="last")
    found = Sinks(sinks_in(run, rule, row) if rule else None, about)
    values, positions = _stacked(run, PATTERN, chosen, row, n_heads)
    numbers = tuple(range(n_heads)) if heads is None else tuple(heads)
    words = _next_tokens(lens, run, row)
    return ShownAttention(values, positions, tuple(chosen), numbers, found, words, _omitted(lens, layers))


def from_run(
    run: Run,
    prompt: Prompt,
    row: int,
    heads: Sequence[int] | None,
    lens: Lens | None,
    sinks: bool | SinkRule,
) -> ShownAttention:
    """Take it from a run whose patterns were read whole.

    Raises:
        HookError: the run holds no patterns, or none that are whole.
        PromptError: the run is of another prompt, or there is no such row.
    """
    if run.prompt is not prompt:
        raise PromptError("this run is of another prompt\n  give the prompt that was run: view(run.prompt, run)")
    check_row(prompt, row)
    layers = sorted(layer for name, layer in run.reads if name == "pattern")
    if not layers:
        held = sorted({name for name, _ in run.reads})
        raise HookError(
            f"this run holds no attention to show: its reads are {held or 'none'}\n"
            '  run with read=[Read("pattern", rows="last")], or give the lens: view(prompt, lens)'
        )
    if lens is None and prompt.cross_keys is not None:
        raise HookError(
            "some layers of this model attend to pictures, not to tokens, and a run does not tell which\n"
            "  give the model too: view(prompt, run, lens=lens)"
        )
    if lens is not None:
        layers = [layer for layer in layers if layer in lens.shape.self_attention]
    sizes = {layer: tuple(run.reads["pattern", layer].shape) for layer in layers}
    broken = [layer for layer in layers if len(sizes[layer]) != 4 or sizes[layer][-1] != prompt.n_tokens]
    if broken:
        raise HookError(
            f"the patterns of layers {broken} are {sizes[broken[0]]}, "
            f"not [batch, head, query, {prompt.n_tokens} keys]\n"
            '  read them whole, without reduce: Read("pattern", rows="last")'
        )
    numbers = _numbers_of(sizes, heads, lens)
    check_size(int((run.positions["pattern"][row] >= 0).sum()), len(layers), len(numbers), prompt.n_tokens)
    values, positions = _stacked(run, "pattern", layers, row, len(numbers))
    inside = values[~values.isnan()]
    if not positions or bool((inside < 0).any() | (inside > 1 + OVER_ONE).any()):
        raise HookError(
            f"the reads at 'pattern' are no probabilities of prompt row {row}\n"
            '  read them whole, without reduce: Read("pattern", rows="last")'
        )
    return ShownAttention(
        values, positions, tuple(layers), numbers, sinks_of_run(run, prompt, row, lens, sinks, layers)
    )


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


def _stacked(
    run: Run, name: str, layers: Sequence[int], row: int, n_heads: int
) -> tuple[Float[Tensor, "query layer head position"], tuple[int, ...]]:
    """The patterns of one prompt row, and the positions of its query rows."""
    positions = run.positions[name][row].cpu()
    real = positions >= 0
    values = torch.full((len(layers), n_heads, int(real.sum()), run.prompt.n_tokens), torch.nan)
    for index, layer in enumerate(layers):
        pattern = run.reads[name, layer][row].detach().float().cpu()
        values[index, : pattern.shape[0]] = pattern[:, real]
    return values.permute(2, 0, 1, 3).contiguous(), tuple(positions[real].tolist())


def _numbers_of(
    sizes: Mapping[int, tuple[int, ...]], heads: Sequence[int] | None, lens: Lens | None
) -> tuple[int, ...]:
    """The head numbers of a run's patterns."""
    counts = {layer: size[1] for layer, size in sizes.items()}
    if heads is not None:
        wrong = [layer for layer, count in counts.items() if count != len(heads)]
        if wrong:
            raise HookError(
                f"heads={list(heads)} names {len(heads)} heads, but the reads of layer {wrong[0]} hold "
                f"{counts[wrong[0]]}\n  name the heads that were read, or leave heads out where all were"
            )
        return tuple(int(head) for head in heads)
    if lens is not None:
        cut = [layer for layer, count in counts.items() if count != lens.shape.n_heads[layer]]
        if cut:
            raise HookError(
                f"the reads of layer {cut[0]} hold {counts[cut[0]]} of its {lens.shape.n_heads[cut[0]]} heads\n"
                "  say which: view(prompt, run, lens=lens, heads=[...])"
            )
    return tuple(range(max(counts.values())))


def _omitted(lens: Lens, layers: Sequence[int] | None) -> str:
    without = [layer for layer in range(lens.n_layers) if layer not in lens.shape.self_attention]
    return f"Left out: layers {without}, which do not attend to tokens." if without and layers is None else ""


def _next_tokens(lens: Lens, run: Run, row: int, n: int = 3) -> tuple[tuple[str, float], ...]:
    """The likeliest next tokens; none without a processor, which has the words."""
    if lens.processor is None:
        return ()
    chances, ids = run.logits[row, -1].detach().float().cpu().softmax(-1).topk(n)
    texts = (lens.adapter.tokenizer.decode([token]) for token in ids.tolist())
    return tuple((text.strip() or repr(text), chance) for text, chance in zip(texts, chances.tolist(), strict=True))
