"""Where heads look from a word, laid over the picture.

    map[j] = reduce over heads h of mean over queries i of a[l, h, i, j]

for each visual token j, drawn where its patch lies: in the picture it belongs to, its crops and frames. The weights are
those of the whole row, so that they say how much of the attention a patch gets, not how much of what the picture gets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.rows import Rows
from ..errors import HookError, PromptError, unknown
from ..figures.canvas import canvases_of, check_placed
from ..hooks.heads import DECODER, VISION, Head, HeadSet, check_head, check_layer, check_part
from ..interventions.base import Intervention
from ..prompts.prompt import Prompt, check_prompt
from ..prompts.rows import RowsLike, bind_rows
from ..sinks.auto import Auto, rule_on
from .map_reader import ON_SINKS, WEIGHTS, MapReader
from .maps import AttentionMap
from .tower_map import checked_norm, tower_weights

if TYPE_CHECKING:
    from ..lens import Lens

HeadsLike = HeadSet | Iterable[Head] | int | None
"""A set of heads, a layer's number for all of its heads, or None for all heads of the model."""
REDUCTIONS = ("mean", "max", None)


def attention_map(
    lens: Lens,
    prompt: Prompt,
    *,
    words: str | Sequence[str] | None = None,
    rows: RowsLike | None = None,
    generated: int | None = None,
    heads: HeadsLike = None,
    reduce: Literal["mean", "max"] | None = "mean",
    drop_sinks: bool = False,
    sink_dims: Sequence[int] | Auto | None = None,
    sink_threshold: float | Auto | None = None,
    interventions: Sequence[Intervention] = (),
    row: int = 0,
    part: str = DECODER,
    sink_norm: float | None = None,
) -> AttentionMap:
    """The attention of heads over the pictures of a prompt, from a word, from any tokens, or from what is generated.

    Costs one plain forward, or one generation; only the queries' rows are computed again, and only sums are kept. Reads
    all weights once too, to say which model it is of.

    Args:
        lens: the model.
        prompt: with pictures or videos.
        words: a word of the prompt, or several, a map each: the mean over all of its tokens, wherever it occurs.
        rows: instead, query tokens: a scope ("last", "question", "image", ...), positions, or Bool[batch, position];
            one map, the mean over them.
        generated: instead, so many generated tokens, a map each: that of the row whose output the token is, so the
            first is the prompt's last token.
        heads: a `HeadSet`, a layer's number for all of its heads, or None for all heads of the model.
        reduce: "mean" or "max" over heads; None for a map of each head.
        drop_sinks: leave out attention sinks, which hold much of the attention and carry nothing: their patches get 0,
            and the map says what they held.
        sink_dims, sink_threshold: as in `score_heads`, for `drop_sinks`.
        interventions: edits under which the attention is read.
        row: batch row.
        part: "decoder", or "vision": heads of the vision tower. A head set of the tower says so itself. `rows` are then
            tokens of the tower, "image" (patches, the default), "class", "register" or "all"; or positions of visual
            tokens, whose patches are meant; of what is above reduce, drop_sinks and interventions go with it.
        sink_norm: for drop_sinks in the tower, whose sinks are told by their norm where they enter the layer, as
            `find_sinks(part="vision")` does: from which on a token is one; 100 by default, which fits CLIP ViT-L.

    Raises:
        HookError: no such head, layer or rows, or heads of cross-attention, whose keys are no tokens of the sequence.
        PromptError: no such word or row, no visual tokens, or none whose place is known.
        ScoreError: sinks that are not known.
    """
    check_prompt(prompt)
    if reduce not in REDUCTIONS:
        raise HookError(unknown("reduction of heads", reduce, REDUCTIONS))
    if sum(each is not None for each in (words, rows, generated)) > 1:
        raise HookError("give one of words=, rows= and generated=: they all say whose attention is meant")
    if not 0 <= row < prompt.n_rows:
        raise PromptError(f"row {row} is out of range: the prompt has rows 0 to {prompt.n_rows - 1}")
    if not drop_sinks and not (sink_dims is None and sink_threshold is None):
        raise HookError("sink_dims and sink_threshold say which sinks to leave out: give drop_sinks=True with them")
    if sink_norm is not None and not drop_sinks:
        raise HookError("sink_norm says which sinks to leave out: give drop_sinks=True with it")
    canvases = canvases_of(prompt, row)
    check_placed(canvases, prompt, row)
    if part == VISION or (isinstance(heads, HeadSet) and heads.part == VISION):
        odd: dict[str, object] = {"words": words, "generated": generated, "row": row}
        odd |= {"sink_dims": sink_dims, "sink_threshold": sink_threshold}
        for name, given in odd.items():
            if given:
                raise HookError(f"a map of the vision tower is made without {name}")
        chosen = chosen_heads(lens, heads, VISION)
        norm = checked_norm(sink_norm) if drop_sinks else None
        said, by_head, on_sinks = tower_weights(lens, prompt, chosen, rows, interventions, norm)
        held = None if on_sinks is None else _reduced(on_sinks[None], reduce)
        return AttentionMap((said,), chosen, reduce, _reduced(by_head[None], reduce), held, canvases, lens.identity)
    if part != DECODER:
        raise HookError(unknown("part of the model", part, (DECODER, VISION)))
    if sink_norm is not None:
        raise HookError('sink_norm is of tokens of the vision tower: give part="vision" with it')
    chosen = chosen_heads(lens, heads)
    names, shares, scope = _queries(prompt, row, words, rows, generated)
    rule = rule_on(lens, prompt, sink_dims, sink_threshold)[0] if drop_sinks else None
    reader = MapReader(chosen.by_layer(), shares, scope, row, rule)
    if generated is None:
        sums = lens.run(prompt, interventions, [reader], logits="last").sums
    else:
        out = lens.generate(prompt, interventions, [reader], max_new_tokens=generated)
        sums, names = out.sums, _said(lens, out.tokens[row])
    by_head = _by_head(sums, WEIGHTS, chosen)
    held = _by_head(sums, ON_SINKS, chosen) if rule is not None else None
    real = by_head.sum((1, 2)) > 0  # a row that ended early has no further queries
    kept = [index for index, name in enumerate(names) if bool(real[index])]
    return AttentionMap(
        queries=tuple(names[index] for index in kept),
        heads=chosen,
        reduce=reduce,
        weights=_reduced(by_head[kept], reduce),
        on_sinks=None if held is None else _reduced(held[kept], reduce),
        canvases=canvases,
        model=lens.identity,
    )


def chosen_heads(lens: Lens, heads: HeadsLike, part: str = DECODER) -> HeadSet:
    """The heads that are meant, none of cross-attention; HookError for those that are not there."""
    shape = lens.vision.shape if part == VISION else lens.shape
    n_layers, n_heads = shape.n_layers, max(shape.n_heads)
    what = "vision tower" if part == VISION else "decoder"
    check_part(heads, part, "an attention map" if part == DECODER else "an attention map of the tower")
    if heads is None:
        pairs = [(layer, head) for layer in shape.self_attention for head in range(shape.n_heads[layer])]
    elif isinstance(heads, int) and not isinstance(heads, bool):
        layer = check_layer(heads, n_layers)
        check_head(layer, 0, n_layers, shape.n_heads[layer])
        pairs = [(layer, head) for head in range(shape.n_heads[layer])]
    elif isinstance(heads, HeadSet) and (heads.n_layers, heads.n_heads) != (n_layers, n_heads):
        raise HookError(
            f"these heads are of {heads.n_layers} layers x {heads.n_heads} heads, the {what} has {n_layers} x "
            f"{n_heads}: they belong to another model"
        )
    elif isinstance(heads, Iterable):
        pairs = list(HeadSet(heads, n_layers, n_heads, part))
        for layer, head in pairs:
            check_head(layer, head, n_layers, shape.n_heads[layer])
    else:
        raise HookError(f"heads are a HeadSet, (layer, head) pairs or a layer's number, given {heads!r}")
    if not pairs:
        raise HookError("no heads were given")
    crossing = sorted({layer for layer, _ in pairs} & set(shape.crossing))
    if crossing:
        raise HookError(
            f"layers {crossing} attend to pictures by cross-attention: their keys are no tokens of the sequence, so "
            "they lie on no patch of it\n  give heads of other layers"
        )
    return HeadSet(pairs, n_layers, n_heads, part)


def _queries(
    prompt: Prompt, row: int, words: str | Sequence[str] | None, rows: RowsLike | None, generated: int | None
) -> tuple[list[str], Float[Tensor, "group position"], Rows]:
    """Names of the groups of queries, by how much each query counts in them, and all queries."""
    if generated is not None:
        if isinstance(generated, bool) or not isinstance(generated, int) or generated < 1:
            raise HookError(f"generated is the number of tokens to generate, 1 or more, given {generated!r}")
        shares = torch.zeros(generated, prompt.n_tokens + generated)
        first = prompt.n_tokens - 1  # what generates ends with its last token
        shares[torch.arange(generated), first + torch.arange(generated)] = 1
        return [""] * generated, shares, bind_rows("generating", prompt)
    if words is None:
        bound = bind_rows("last" if rows is None else rows, prompt)
        chosen = bound.prompt[row]
        if not bool(chosen.any()):
            raise HookError(
                f"rows {bound.label!r} select no token of row {row} of the prompt\n"
                "  generated=n reads what generated tokens look at"
            )
        groups = {_label(prompt, row, bound.label, chosen.nonzero().flatten().tolist()): chosen}
    else:
        groups = {}
        for word in [words] if isinstance(words, str) else words:
            groups[word] = torch.zeros(prompt.n_tokens, dtype=torch.bool)
            groups[word][list(prompt.words(word, row))] = True
        if not groups:
            raise PromptError("no words were given")
    masks = torch.stack(list(groups.values()))
    whole = torch.zeros_like(prompt.mask("all"))
    whole[row] = masks.any(0)
    return list(groups), masks / masks.sum(1, keepdim=True), Rows("queries of the map", whole)


def _label(prompt: Prompt, row: int, label: str, positions: Sequence[int]) -> str:
    if len(positions) == 1:
        return f"{prompt.tokens[row][positions[0]]} at {positions[0]}"
    return label if len(label) < 40 else f"{len(positions)} tokens"


def _said(lens: Lens, tokens: Tensor) -> list[str]:
    if lens.adapter.tokenizer is None:
        return [f"#{token}" for token in tokens.tolist()]
    return [lens.adapter.tokenizer.decode([token]).strip() or f"#{token}" for token in tokens.tolist()]


def _by_head(sums: object, name: str, heads: HeadSet) -> Float[Tensor, "group head *key"]:
    """The sums of all heads, in the order of the set."""
    by_layer = heads.by_layer()
    found = {
        (layer, head): sums[name, layer][:, index].float().cpu()  # type: ignore[index]
        for layer, own in by_layer.items()
        for index, head in enumerate(own)
    }
    return torch.stack([found[head] for head in heads], 1)


def _reduced(by_head: Float[Tensor, "group head *key"], reduce: str | None) -> Float[Tensor, "group panel *key"]:
    if reduce is None:
        return by_head
    return by_head.mean(1, keepdim=True) if reduce == "mean" else by_head.amax(1, keepdim=True)
