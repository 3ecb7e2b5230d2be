"""A clean and a corrupt prompt with all that edges between their runs are computed from.

1. Both prompts run once, pictures and all, and every layer is watched: what it is made of, what its nodes write.
2. From then on the decoder layers run by themselves, on what the model gave them; pictures are not looked at again.
3. Two checks, or the model is refused: the nodes' parts add up to the stream that the logits are made of, and (in
   `attribution`) the gradients of all entries add up to that of the embeddings. An unknown path breaks one of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..answers.contrast import AnswersLike, Contrast, contrast
from ..errors import ScoreError
from ..interventions.patch import check_same_layout
from ..patching.activation import checked_pair
from ..patching.units import Units
from ..prompts.prompt import Prompt
from ..prompts.tensors import tensors_in
from ..replay import UnfitError, record
from ..replay.check import agree
from ..replay.recording import LayerCall
from ..replay.unembedding import Unembedding
from .decoder import Decoder, Given
from .graph import WHOLE, Graph
from .joint_graph import JointGraph
from .parts import Parts, parts_of
from .tower import TowerPair, TowerWatch
from .watching import Seen, watching
from .written import Places, Written

if TYPE_CHECKING:
    from ..lens import Lens

MARKS = 16
"""Numbers by which a prompt is known again."""


@dataclass(frozen=True, eq=False)
class Pair:
    """Clean and corrupt prompts, row by row.

    Attributes:
        decoder: runs both.
        graph: nodes, entries, edges.
        clean, corrupt: what entered the decoder in each: embeddings and added features alone.
        change: what the nodes wrote, clean minus corrupt.
        places: the tokens of the spans.
        contrast: the two answers and the logit differences of both runs.
        marks: Float[batch, number], by which these prompts are known again.
        tower: the vision tower before the decoder, if edges begin there.
    """

    decoder: Decoder
    graph: Graph
    clean: Written
    corrupt: Written
    change: Written
    places: Places
    contrast: Contrast
    marks: Float[Tensor, "batch number"]
    tower: TowerPair | None = None

    @property
    def whole(self) -> Graph | JointGraph:
        """The graph of all edges, the tower's too."""
        return self.graph if self.tower is None else JointGraph(self.graph, self.tower.graph)

    @property
    def last(self) -> Places:
        """The last token of each row alone."""
        last = self.decoder.last
        runs = tuple((row, self.graph.answer_span, row, row + 1) for row in range(len(last)))
        return Places(torch.arange(len(last)), last, runs)


def pair_of(
    lens: Lens,
    clean: Prompt,
    corrupt: Prompt,
    answers: AnswersLike | None,
    by_span: bool,
    keep_corrupt: bool = False,
    tower: bool = False,
) -> Pair:
    """Run both prompts and take the model apart.

    Args:
        lens: the model.
        clean, corrupt: as many rows each, of the same layout.
        answers: (correct, incorrect) of each row; None for what the model answers.
        by_span: whether edges are told apart by span.
        keep_corrupt: whether what the corrupt run's nodes wrote is kept too.
        tower: whether edges begin in the vision tower.

    Raises:
        ScoreError: the model has paths that are not known, the backend is not the native one, prompts or answers that
            tell nothing apart.
        InterventionError: the two prompts have another layout.
    """
    check_same_layout(*checked_pair(clean, corrupt))
    if lens.backend != "native":
        raise ScoreError(
            f"edges need gradients and the layers' own inputs, which backend {lens.backend!r} does not hand over\n"
            "  open the same model with backend='native': Lens(model, processor, backend='native')"
        )
    units = Units.of("span", corrupt, max(lens.shape.n_heads))
    spans = dict(zip(units.names, units.masks, strict=True)) if by_span else {WHOLE: corrupt.mask("all")}
    try:
        # tensors made in inference mode could not be differentiated later
        with torch.inference_mode(False):
            return _pair(lens, clean, corrupt, answers, spans, keep_corrupt, TowerWatch(lens, clean) if tower else None)
    except UnfitError as why:
        raise ScoreError(
            f"no circuit can be found in this model: {why}\n"
            "  activation_patching and head_effects measure its activations and heads"
        ) from why


def _pair(
    lens: Lens,
    clean: Prompt,
    corrupt: Prompt,
    answers: AnswersLike | None,
    spans: Mapping[str, Tensor],
    keep_corrupt: bool,
    tower: TowerWatch | None,
) -> Pair:
    layers, seen_parts = lens.adapter.layers, dict[int, Parts]()
    runs, finals = [], []
    recording: _Kept | None = None
    for prompt in (clean, corrupt):
        written, final = Written(torch.empty(0)), dict[int, Tensor]()

        def done(layer: int, seen: Seen, written: Written = written, final: dict[int, Tensor] = final) -> None:
            if layer not in seen_parts:
                seen_parts[layer] = parts_of(layer, layers[layer], seen)
            written.note(layer, seen, seen_parts[layer])
            if layer == len(layers) - 1:
                final[0] = seen.out

        with torch.no_grad(), watching(layers, done), nullcontext() if tower is None else tower.watching():
            found = record(lens, prompt)
        written.embed = found.calls[0].hidden
        added = {i: call.added_after for i, call in enumerate(found.calls) if call.added_after is not None}
        written.added = added
        last = prompt.mask("last").int().argmax(1)
        runs.append(written)
        finals.append((final[0][torch.arange(len(last)), last], found.logits))
        given = tuple((call.args, call.kwargs) for call in found.calls)
        if recording is not None:
            _check_given(recording.given, given)
        n_kv = tuple(_n_kv(call, layer) for layer, call in enumerate(found.calls))
        recording = _Kept(given, n_kv, found.unembedding, found.configs)
        del found  # its streams, queries, keys and values
    assert recording is not None
    decoder = Decoder(
        layers,
        tuple(replace(seen_parts[layer], n_kv=n_kv) for layer, n_kv in enumerate(recording.n_kv)),
        recording.given,
        recording.unembedding,
        recording.configs,
        corrupt.mask("last").int().argmax(1),
    )
    pair = contrast(lens, finals[0][1], finals[1][1], answers)
    entered = [Written(run.embed, run.added) for run in runs]
    marks = torch.cat([_marks(run.embed, corrupt.mask("all")) for run in runs], 1)
    for layer in set(runs[0].added) ^ set(runs[1].added):  # added in one run alone: nothing to the other
        for run in runs:
            run.added = {layer: torch.zeros_like(run.embed), **run.added}
    change = runs[0].minus(runs[1])
    graph = Graph(
        tuple(layer.n_heads for layer in layers),
        tuple(parts.n_kv for parts in decoder.parts),
        tuple(parts.parallel for parts in decoder.parts),
        tuple(sorted(change.added)),
        tuple(spans),
    )
    kept = runs[1] if keep_corrupt else entered[1]
    before = None if tower is None else tower.finished(corrupt, entered[0], WHOLE not in spans, keep_corrupt)
    found_pair = Pair(decoder, graph, entered[0], kept, change, Places.of(list(spans.values())), pair, marks, before)
    _check_sum(found_pair, finals[0][0] - finals[1][0], finals[0][0])
    return found_pair


@dataclass(frozen=True, eq=False)
class _Kept:
    """What is kept of a recording."""

    given: Given
    n_kv: tuple[int, ...]
    unembedding: Unembedding
    configs: Sequence[Any]


def _check_given(one: Given, other: Given) -> None:
    """UnfitError where the layers of the two runs were given different things beside the stream."""
    for index, (mine, theirs) in enumerate(zip(one, other, strict=True)):
        left, right = ([*tensors_in([args, dict(kwargs)])] for args, kwargs in (mine, theirs))
        pairs = list(zip(left, right, strict=False))
        if len(left) != len(right) or not all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs):
            raise UnfitError(f"layer {index} is given more of the prompt than the residual stream")


def _n_kv(call: LayerCall, index: int) -> int:
    """Key-value heads of a layer."""
    if call.attention is None:
        raise UnfitError(f"the attention of layer {index} cannot be followed")
    return call.attention.key.shape[1]


def _check_sum(pair: Pair, change: Float[Tensor, "batch d_model"], final: Float[Tensor, "batch d_model"]) -> None:
    """UnfitError unless what the nodes wrote adds up to the change of the stream that the logits are made of."""
    outputs = [parts.outputs() for parts in pair.decoder.parts]
    total = pair.change.vectors(outputs, pair.last.rows, pair.last.positions).sum(0)
    scale = final.abs().max()
    if not agree(total / scale, change.to(total.device) / scale):
        off = float((total - change).abs().max() / scale)
        raise UnfitError(
            f"what its heads and feed-forward parts write does not add up to its residual stream (off by {off:.1g})"
        )


def _marks(embed: Float[Tensor, "batch position d_model"], real: Tensor) -> Float[Tensor, "batch number"]:
    """A few numbers of each row's embeddings, whatever the padding."""
    real = real.to(embed.device)
    weight = torch.cos(real.cumsum(1).double()) * real
    every = max(1, embed.shape[-1] // MARKS)
    return torch.einsum("bp,bpd->bd", weight, embed[..., ::every].double())[:, :MARKS].float().cpu()
