"""Scores of all edges from gradients: EAP (arXiv:2310.10348) and EAP-IG (Hanna et al., arXiv:2403.17806).

    score(u, v, span) = sum over the span's tokens of (a_u clean - a_u corrupt) . g_v

a_u is what node u writes, g_v the gradient of the logit difference with respect to the residual stream as entry v alone
reads it, before its norm. EAP takes g_v on the clean run, EAP-IG its mean over `steps` points of the straight line
between the two runs' input embeddings, pictures merged in and added features with them, by the midpoint rule.

1. One backward pass gives the gradients of all q, k and v, of what the feed-forward parts read, and of the stream.
2. Chunk by chunk of tokens, nodes' vectors are made of z and W_O, entries' gradients of dq and W_Q (k and v likewise)
   and of the derivative of their norm; all pairs are one matrix product. No vector a head outlives its chunk.
   Through a vision tower the line runs between what enters its first layer, and its gradients go on through the
   projector from what enters the decoder.
3. The scores out of the embeddings must add up to (embeddings' change) . (their gradient), which a path that is
   not an edge would break.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..answers.contrast import logit_difference
from ..patching.probe import differentiable
from ..replay import UnfitError
from ..replay.check import ROUNDING
from .graph import EMBED, Graph
from .pair import Pair
from .parts import Parts
from .tower import TowerPair
from .watching import Seen
from .written import Places


@dataclass(eq=False)
class _Layer:
    """One layer's tensors in a forward that keeps its graph, and later their gradients."""

    hidden: Tensor
    mid: Tensor
    read: tuple[Tensor, Tensor, Tensor, Tensor]  # q, k, v, what the feed-forward part is given


def edge_scores(pair: Pair, method: str, steps: int) -> Float[Tensor, "batch edge"]:
    """The score of every edge for every row, in logits, fp64 on the CPU; those of a vision tower behind the decoder's.

    Args:
        pair: the prompts.
        method: "eap" or "eap-ig".
        steps: points of the line, for "eap-ig".

    Raises:
        UnfitError: the model has paths between its nodes that are no edges.
    """
    shares = [1.0] if method == "eap" else [(step + 0.5) / steps for step in range(steps)]
    modules = [layer.module for layer in pair.decoder.layers]
    whole = [pair.decoder.unembedding.modules] if pair.tower is None else [[pair.tower.decoder.lens.model]]
    total: Tensor | float = 0.0
    with differentiable(*modules, *(module for each in whole for module in each)):
        for share in shares:
            total = total + _at(pair, share) / len(shares)
    assert isinstance(total, Tensor)
    return total


def _at(pair: Pair, share: float) -> Float[Tensor, "batch edge"]:
    """The scores at one point of the line."""
    if pair.tower is None:
        scores, _ = _of_decoder(pair, between(pair.corrupt.embed, pair.clean.embed, share), _added(pair, share))
        return _listed(scores, pair.graph)
    tower, found = pair.tower, dict[int, _Layer]()
    patches = between(tower.corrupt.embed, tower.clean.embed, share).requires_grad_()
    streams = tower.decoder.run(patches, None, _collecting(found, tower.decoder.parts))
    embed, added = tower.entering(streams, between(pair.corrupt.embed, pair.clean.embed, share))
    entering = [embed, *added.values()]
    scores, slopes = _of_decoder(pair, embed.detach(), {layer: x.detach() for layer, x in added.items()})
    wanted = [patches, *streams, *(x for layer in found.values() for x in layer.read)]
    gradients = torch.autograd.grad(entering, wanted, slopes, allow_unused=True, materialize_grads=True)
    entered, *rest = gradients
    finals, n, places = rest[: len(streams)], len(streams), tower.places
    _put(found, rest[n:])
    behind = torch.stack([final[places.rows, places.positions] for final in finals])
    own = _products(tower, found, entered, [(places, behind)])
    return torch.cat([_listed(scores, pair.graph), _listed(tower.by_row(own), tower.graph)], 1)


def _listed(scores: Float[Tensor, "batch node entry span"], graph: Graph) -> Float[Tensor, "batch edge"]:
    node, entry, span = graph.edges.T
    return scores[:, node, entry, span]


def _of_decoder(
    pair: Pair, embed: Tensor, added: Mapping[int, Tensor]
) -> tuple[Float[Tensor, "batch node entry span"], list[Tensor]]:
    """The decoder's scores where this enters it and is added in it, and the gradients by that."""
    layers, gradient, slopes = _gradients(pair, embed, added)
    return _products(pair, layers, slopes[0], [(pair.last, gradient[None])]), slopes


def _added(pair: Pair, share: float) -> dict[int, Tensor]:
    """What is added in the decoder at a point of the line."""
    both = pair.clean.added.keys() & pair.corrupt.added.keys()
    return {layer: between(pair.corrupt.added[layer], pair.clean.added[layer], share) for layer in sorted(both)}


def _products(
    pair: Pair | TowerPair,
    layers: Mapping[int, _Layer],
    embedded: Tensor,
    behind: Sequence[tuple[Places, Float[Tensor, "read place d_model"]]],
) -> Float[Tensor, "batch node entry span"]:
    """What the nodes wrote, times the gradients of what the entries read.

    Args:
        pair: the decoder's, or the tower's.
        layers: gradients of what each layer reads.
        embedded: that of what enters the first.
        behind: those of what leaves the last, or all that a projector reads, and where it is read.
    """
    graph, change, parts = pair.graph, pair.change, pair.decoder.parts
    own = torch.zeros(len(change.embed), *graph.exists.shape, dtype=torch.float64)
    outputs = [each.outputs() for each in parts]
    n_vectors = len(graph.nodes) + max(2 * len(graph.entries[graph.of_layer(layer)]) for layer in layers)
    expected = torch.zeros(len(own), len(graph.spans), dtype=torch.float64)
    for places in pair.places.chunks(n_vectors, change.embed.shape[-1]):
        vectors = change.vectors(outputs, places.rows, places.positions)
        for index, layer in layers.items():
            entries = _entry_gradients(layer, parts[index], places)
            _multiply(own, vectors.to(entries.device), entries, graph.of_layer(index), places)
        at = embedded[places.rows, places.positions] * change.embed[places.rows, places.positions]
        for row, span, start, stop in places.runs:
            expected[row, span] += at[start:stop].double().sum().cpu()
    for places, gradient in behind:
        vectors = change.vectors(outputs, places.rows, places.positions)
        _multiply(own, vectors, gradient.to(vectors.device), graph.of_layer(graph.n_layers), places)
    own.masked_fill_(~graph.exists, 0)
    _check_embedding(own[:, 0], expected, embedded.dtype)
    return own


def _collecting(found: dict[int, _Layer], parts_of: Sequence[Parts]) -> Callable[[int, Seen], None]:
    """Keeps what each layer reads, as it ends."""

    def done(index: int, seen: Seen) -> None:
        parts = parts_of[index]
        q, k, v = (seen.returned(module) for module in (parts.q, parts.k, parts.v))
        read = (q, k, v, seen.given(parts.layer.mlp))
        found[index] = _Layer(seen.hidden.detach(), seen.mid(parts).detach(), read)

    return done


def _put(layers: Mapping[int, _Layer], gradients: Sequence[Tensor]) -> None:
    """Gradients in the place of what was read."""
    for place, layer in enumerate(layers.values()):
        q, k, v, mlp = gradients[4 * place : 4 * place + 4]
        layer.read = (q, k, v, mlp.reshape(layer.mid.shape))


def _gradients(
    pair: Pair, embed: Tensor, added: Mapping[int, Tensor]
) -> tuple[Mapping[int, _Layer], Tensor, list[Tensor]]:
    """Gradients at a point of the line: of what each layer reads, of the last stream, of what enters and is added."""
    decoder, found = pair.decoder, dict[int, _Layer]()
    entering = [x.requires_grad_() for x in (embed, *added.values())]
    final = decoder.run(embed, added, _collecting(found, decoder.parts))
    # the rows of a batch do not depend on each other
    total = logit_difference(decoder.logits(final), pair.contrast.ids).sum()
    wanted = [final, *entering, *(x for layer in found.values() for x in layer.read)]
    gradient, *rest = torch.autograd.grad(total, wanted, allow_unused=True, materialize_grads=True)
    _put(found, rest[len(entering) :])
    return found, gradient, rest[: len(entering)]


def between(corrupt: Tensor, clean: Tensor, share: float) -> Tensor:
    """A point of the straight line from corrupt to clean."""
    return (corrupt + share * (clean - corrupt)).detach()


def _entry_gradients(layer: _Layer, parts: Parts, places: Places) -> Float[Tensor, "entry place d_model"]:
    """The gradient of each entry of a layer with respect to the stream as it reads it, before its norm."""
    rows, positions = places.rows, places.positions
    read = []
    for (weight, _), gradient in zip(parts.projections(), layer.read, strict=False):
        by_head = gradient[rows, positions].unflatten(-1, (len(weight), -1))
        read.append(torch.einsum("pho,hom->hpm", by_head, weight.to(by_head.dtype)))
    attention = backwards(parts.norm, layer.hidden[rows, positions], torch.cat(read))
    mlp = backwards(parts.mlp_norm, layer.mid[rows, positions], layer.read[3][rows, positions][None])
    return torch.cat([attention, mlp])


def backwards(
    norm: nn.Module | None, x: Float[Tensor, "place d_model"], gradient: Float[Tensor, "entry place d_model"]
) -> Float[Tensor, "entry place d_model"]:
    """Gradients with respect to what a norm returns, at x, as gradients with respect to what it is given."""
    if norm is None:
        return gradient
    leaf = x.expand_as(gradient).detach().requires_grad_()
    normed = norm(leaf)
    found: Tensor = torch.autograd.grad(normed, leaf, gradient.to(normed.dtype))[0]
    return found


def _multiply(
    scores: Float[Tensor, "batch node entry span"],
    vectors: Float[Tensor, "node place d_model"],
    gradients: Float[Tensor, "own place d_model"],
    entries: slice,
    places: Places,
) -> None:
    """Add the products of all nodes and some entries at some places."""
    wide = torch.float64 if gradients.dtype == torch.float64 else torch.float32
    vectors, gradients = vectors.to(wide), gradients.to(wide)
    for row, span, start, stop in places.runs:
        product = vectors[:, start:stop].flatten(1) @ gradients[:, start:stop].flatten(1).T
        scores[row, :, entries, span] += product.double().cpu()


def _check_embedding(
    found: Float[Tensor, "batch entry span"], expected: Float[Tensor, "batch span"], dtype: torch.dtype
) -> None:
    """UnfitError unless the scores out of the embeddings add up to their change times their gradient."""
    scale = found.abs().sum(1).max().clamp_min(1e-30)
    off = float((found.sum(1) - expected).abs().max() / scale)
    if not off <= 10 * ROUNDING.get(dtype, 2e-4):
        raise UnfitError(
            f"the gradients of what its {EMBED}dings reach do not add up to their own (off by {off:.1g}), so that "
            "some of its paths are no edges"
        )
