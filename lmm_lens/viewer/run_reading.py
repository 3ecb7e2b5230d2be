"""What the viewer shows of a run or a generation whose patterns were read, edits included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..errors import HookError, PromptError
from ..hooks.results import Generation, Run
from ..prompts.prompt import Prompt
from ..sinks import SinkRule
from .reading import ShownAttention, check_row, check_size, next_tokens, stacked
from .sequence import TokenRow
from .sink_tokens import sinks_of_run

if TYPE_CHECKING:
    from ..lens import Lens

OVER_ONE = 1e-2  # how far a probability in half precision may lie over 1


def from_run(
    what: Run | Generation,
    prompt: Prompt,
    row: int,
    heads: Sequence[int] | None,
    lens: Lens | None,
    sinks: bool | SinkRule,
) -> tuple[ShownAttention, TokenRow]:
    """Take one prompt row from a run whose patterns were read whole, and the tokens that they are of.

    Raises:
        HookError: the run holds no patterns, or none that are whole.
        PromptError: the run is of another prompt, or there is no such row.
    """
    kind = "generation" if isinstance(what, Generation) else "run"
    if what.prompt is not prompt:
        raise PromptError(
            f"this {kind} is of another prompt\n  give the prompt that was run: view({kind}.prompt, {kind})"
        )
    check_row(prompt, row)
    layers = sorted(layer for name, layer in what.reads if name == "pattern")
    if not layers:
        held = sorted({name for name, _ in what.reads})
        rows = "generating" if kind == "generation" else "last"
        raise HookError(
            f"this {kind} holds no attention to show: its reads are {held or 'none'}\n"
            f'  run with read=[Read("pattern", rows="{rows}")], or give the lens: view(prompt, lens)'
        )
    if lens is None and prompt.cross_keys is not None:
        raise HookError(
            "some layers of this model attend to pictures, not to tokens, and a run does not tell which\n"
            "  give the model too: view(prompt, run, lens=lens)"
        )
    if lens is not None:
        layers = [layer for layer in layers if layer in lens.shape.self_attention]
    # a query is a key of its own row, so the last one tells how many there are
    n_keys = max(prompt.n_tokens, int(what.positions["pattern"].max()) + 1)
    sizes = {layer: tuple(what.reads["pattern", layer].shape) for layer in layers}
    whole = {prompt.n_tokens} if kind == "run" else range(prompt.n_tokens, 2**31)
    broken = [layer for layer in layers if len(sizes[layer]) != 4 or sizes[layer][-1] not in whole]
    if broken:
        raise HookError(
            f"the patterns of layers {broken} are {sizes[broken[0]]}, not [batch, head, query, {n_keys} keys]\n"
            '  read them whole, without reduce: Read("pattern", rows="last")'
        )
    numbers = _numbers_of(sizes, heads, lens)
    check_size(int((what.positions["pattern"][row] >= 0).sum()), len(layers), len(numbers), n_keys)
    values, positions = stacked(what, "pattern", layers, row, len(numbers), n_keys)
    inside = values[~values.isnan()]
    if not positions or bool((inside < 0).any() | (inside > 1 + OVER_ONE).any()):
        raise HookError(
            f"the reads at 'pattern' are no probabilities of prompt row {row}\n"
            '  read them whole, without reduce: Read("pattern", rows="last")'
        )
    found = sinks_of_run(what, prompt, row, lens, sinks, layers)
    words = next_tokens(lens, what, row) if lens is not None and isinstance(what, Run) else ()
    shown = ShownAttention(values, positions, tuple(layers), numbers, found, words)
    if isinstance(what, Run):
        return shown, TokenRow.of(prompt, row)
    return shown, _continued(what, row, n_keys, lens)


def _continued(made: Generation, row: int, n_positions: int, lens: Lens | None) -> TokenRow:
    """The prompt's tokens with those that were generated, as far as later ones could attend to them."""
    first = made.prompt.n_tokens
    read = made.positions["pattern"][row]
    n_real = n_positions - first
    if made.prompt.n_rows > 1:  # one that ended early was padded: no query of its own, and no token
        n_real = max(0, min(n_real, int(read.max()) + 1 - first))
    ids = made.tokens[row, :n_real].tolist()
    decode = lens.adapter.tokenizer.decode if lens is not None and lens.processor is not None else None
    texts = [decode([token]).strip() or repr(decode([token])) if decode else f"token {token}" for token in ids]
    generated = {first + number: text for number, text in enumerate(texts)}
    return TokenRow(made.prompt, row, generated, n_positions, made.text[row])


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
