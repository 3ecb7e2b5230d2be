"""Scores of all edges from gradients: EAP (arXiv:2310.10348) and EAP-IG (Hanna et al., arXiv:2403.17806).

    score(u, v, span) = sum over the span's tokens of (a_u clean - a_u corrupt) . g_v

a_u is what node u writes, g_v the gradient of the logit difference with respect to the residual stream as entry v alone
reads it, before its norm. EAP takes g_v on the clean run, EAP-IG its mean over `steps` points of the straight line
between the two runs' input embeddings, pictures merged in and added features with them, by the midpoint rule.

1. One backward pass gives the gradients of all q, k and v, of what the feed-forward parts read, and of the stream.
2. Chunk by chunk of tokens, nodes' vectors are made of z and W_O, entries' gradients of dq and W_Q (k and v likewise)
   and of the derivative of their norm; all pairs are one matrix product. No vector a head outlives its chunk.
3. The scores out of the embeddings must add up to (embeddings' change) . (their gradient), which a path that is
   not an edge would break.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..answers.contrast import logit_difference
from ..patching.probe import differentiable
from ..replay import UnfitError
from ..replay.check import ROUNDING
from .graph import EMBED
from .pair import Pair
from .parts import Parts
from .watching import Seen
from .written import Places


@dataclass(eq=False)
class _Layer:
    """One layer's tensors in a forward that keeps its graph, and later their gradients."""

    hidden: Tensor
    mid: Tensor
    read: tuple[Tensor, Tensor, Tensor, Tensor]  # q, k, v, what the feed-forward part is given


def edge_scores(pair: Pair, method: str, steps: int) -> Float[Tensor, "batch node entry span"]:
    """The score of every edge for every row, in logits, fp64 on the CPU; 0 where there is no edge.

    Args:
        pair: the prompts.
        method: "eap" or "eap-ig".
        steps: points of the line, for "eap-ig".

    Raises:
        UnfitError: the model has paths between its nodes that are no edges.
    """
    graph = pair.graph
    size = len(pair.marks), len(graph.nodes), len(graph.entries), len(graph.spans)
    shares = [1.0] if method == "eap" else [(step + 0.5) / steps for step in range(steps)]
    with differentiable(*(layer.module for layer in pair.decoder.layers), *pair.decoder.unembedding.modules):
        scores = torch.zeros(size, dtype=torch.float64)
        for share in shares:
            _add(scores, pair, share, 1 / len(shares))
    return scores


def _add(scores: Float[Tensor, "batch node entry span"], pair: Pair, share: float, weight: float) -> None:
    """Add the scores at one point of the line, in place."""
    layers, gradient, embedded = _gradients(pair, share)
    own = torch.zeros_like(scores)
    graph, change, parts = pair.graph, pair.change, pair.decoder.parts
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
    last = pair.last
    vectors = change.vectors(outputs, last.rows, last.positions)
    _multiply(own, vectors, gradient[None].to(vectors.device), graph.of_layer(graph.n_layers), last)
    own.masked_fill_(~graph.exists, 0)
    _check_embedding(own[:, 0], expected, embedded.dtype)
    scores += weight * own


def _gradients(pair: Pair, share: float) -> tuple[Mapping[int, _Layer], Tensor, Tensor]:
    """Gradients at a point of the line: of what each layer reads, of the last stream, of the embeddings."""
    decoder, found = pair.decoder, dict[int, _Layer]()

    def done(index: int, seen: Seen) -> None:
        parts = decoder.parts[index]
        q, k, v = (seen.returned(module) for module in (parts.q, parts.k, parts.v))
        read = (q, k, v, seen.given(parts.layer.mlp))
        found[index] = _Layer(seen.hidden.detach(), seen.mid(parts).detach(), read)

    embed = between(pair.corrupt.embed, pair.clean.embed, share).requires_grad_()
    added = {
        layer: between(pair.corrupt.added[layer], x, share)
        for layer, x in pair.clean.added.items()
        if layer in pair.corrupt.added
    }
    final = decoder.run(embed, added, done)
    # the rows of a batch do not depend on each other
    total = logit_difference(decoder.logits(final), pair.contrast.ids).sum()
    wanted = [embed, final, *(x for layer in found.values() for x in layer.read)]
    embedded, gradient, *rest = torch.autograd.grad(total, wanted, allow_unused=True, materialize_grads=True)
    for place, layer in enumerate(found.values()):
        q, k, v, mlp = rest[4 * place : 4 * place + 4]
        layer.read = (q, k, v, mlp.reshape(layer.mid.shape))
    return found, gradient, embedded


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
