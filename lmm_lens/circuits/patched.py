"""Forwards in which every edge carries either what its node writes now or what it wrote in the corrupt run.

    input of entry v at a token of span s = corrupt input + sum over kept edges (u, v, s) of (a_u now - a_u corrupt)

With every edge kept it is the clean run, with none the corrupt one, exactly. The decoder layers run one after the other
on the clean embeddings; each head's q, k and v and each feed-forward part get an input of their own, summed chunk by
chunk of tokens, and what they then write is what later entries read.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..answers.contrast import logit_difference
from ..backends.native import interface as attention
from .graph import LOGITS, MLP, Q
from .joint_graph import JointGraph
from .pair import Pair
from .parts import Parts
from .tower import TowerPair
from .watching import Seen, in_one_row, watching, written_scale
from .written import Places, Written

Keep = Bool[Tensor, "node entry span"]


class PatchedLayers:
    """The layers of a decoder, or of a vision tower, run with edges patched.

    Args:
        pair: made with `keep_corrupt=True`.
    """

    def __init__(self, pair: Pair | TowerPair) -> None:
        self.pair, self.graph, self.decoder = pair, pair.graph, pair.decoder
        self.outputs = [parts.outputs() for parts in self.decoder.parts]
        self.streams, self.mids = dict[int, Tensor](), dict[int, Tensor]()  # of the corrupt run

        def done(layer: int, seen: Seen) -> None:
            self.streams[layer], self.mids[layer] = seen.hidden, seen.mid(self.decoder.parts[layer])

        with torch.no_grad():
            self.left: Any = self.decoder.run(pair.corrupt.embed, pair.corrupt.added, done)

    @cached_property
    def projections(self) -> list[list[tuple[Tensor, Tensor | None]]]:
        """Weight and bias of q, k and v of each layer."""
        return [parts.projections() for parts in self.decoder.parts]

    def _layer(self, layer: int, now: Written, keep: Keep) -> None:
        """Run one layer, and note what it writes."""
        parts, stream = self.decoder.parts[layer], self.streams[layer]
        entries = self.graph.entries[self.graph.of_layer(layer)]
        own = keep[:, self.graph.of_layer(layer)]
        projected = self._projected(layer, now, own[:, : len(entries) - 1])
        heads: list[Tensor] = []

        def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            attended = output[0] if isinstance(output, tuple) else output
            now.z[layer] = heads[0] * written_scale(parts, attended)[..., None] - self.pair.corrupt.z[layer]

        def z(module: nn.Module, args: tuple[Any, ...]) -> None:
            heads.append(in_one_row(args[0]).unflatten(-1, (parts.layer.n_heads, -1)))

        def feed(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            given = args[0] if args else kwargs["hidden_states"]
            mid = self._fed(layer, now, own[:, len(entries) - 1 :], parts).reshape(given.shape)
            return ((mid, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": mid})

        def done(index: int, seen: Seen) -> None:
            now.mlp[layer] = seen.mlp_written(parts) - self.pair.corrupt.mlp[layer]

        assert parts.layer.output_projection is not None
        assert parts.layer.attention is not None
        assert parts.layer.mlp is not None
        with ExitStack() as stack:
            for module, tensor in zip((parts.q, parts.k, parts.v), projected, strict=True):
                stack.callback(module.register_forward_hook(_returning(tensor)).remove)
            stack.callback(parts.layer.output_projection.register_forward_pre_hook(z).remove)
            stack.callback(parts.layer.attention.register_forward_hook(note).remove)
            stack.callback(parts.layer.mlp.register_forward_pre_hook(feed, with_kwargs=True).remove)
            stack.enter_context(watching((parts.layer,), done))
            self.decoder.layer(layer, parts.layer, stream)

    def _projected(self, layer: int, now: Written, keep: Keep) -> list[Tensor]:
        """q, k and v of a layer, each head's made of an input of its own."""
        parts, stream = self.decoder.parts[layer], self.streams[layer]
        projections = self.projections[layer]
        made = [stream.new_zeros(*stream.shape[:2], *weight.shape[:2]) for weight, _ in projections]
        for places in self._chunks(keep):
            base = stream[places.rows, places.positions]
            read = self._inputs(base, now, keep, self.graph.before(layer, Q), layer, places)
            normed = read if parts.norm is None else parts.norm(read)
            start = 0
            for (weight, bias), into in zip(projections, made, strict=True):
                own = normed[start : start + len(weight)]
                start += len(weight)
                found = torch.einsum("hpm,hom->pho", own, weight.to(own.dtype))
                into[places.rows, places.positions] = found if bias is None else found + bias
        return [each.flatten(2) for each in made]

    def _fed(self, layer: int, now: Written, keep: Keep, parts: Parts) -> Tensor:
        """What the feed-forward part of a layer is given."""
        mid = self.mids[layer].clone()
        for places in self._chunks(keep):
            base = mid[places.rows, places.positions]
            read = self._inputs(base, now, keep, self.graph.before(layer, MLP), layer, places)
            mid[places.rows, places.positions] = read[0]
        return mid if parts.mlp_norm is None else parts.mlp_norm(mid)

    def _chunks(self, keep: Keep) -> list[Places]:
        return self.pair.places.chunks(len(self.graph.nodes) + 2 * keep.shape[1], self.pair.change.embed.shape[-1])

    def _inputs(
        self, base: Float[Tensor, "place d_model"], now: Written, keep: Keep, n_nodes: int, layer: int, places: Places
    ) -> Float[Tensor, "entry place d_model"]:
        """What some entries of a layer read at some places.

        Args:
            base: what they read there in the corrupt run.
            now: what nodes write now, as a change of the corrupt run.
            keep: these entries' edges.
            n_nodes: how many nodes come before them.
            layer: the layer.
            places: the places.
        """
        vectors = now.vectors(self.outputs, places.rows, places.positions, layer)[:n_nodes]
        read = base.expand(keep.shape[1], *base.shape).clone()
        kept = keep[:n_nodes].to(vectors.device, vectors.dtype)
        for _, span, start, stop in places.runs:
            flat = kept[:, :, span].T @ vectors[:, start:stop].flatten(1)
            read[:, start:stop] += flat.unflatten(1, (stop - start, -1)).to(base.device)
        return read


class PatchedForwards(PatchedLayers):
    """Patched forwards of one pair, from what enters the decoder to the answer.

    Args:
        pair: made with `keep_corrupt=True`.
    """

    def __init__(self, pair: Pair) -> None:
        super().__init__(pair)
        self.whole = pair
        self.final: Tensor = self.left

    def logit_differences(self, keep: Keep, first: int = 0, entering: Written | None = None) -> Float[Tensor, " batch"]:
        """The logit difference of each row with some edges kept, fp64 on the CPU.

        Args:
            keep: which edges carry what their node writes now; all others carry their corrupt value.
            first: the first layer in which an edge is not kept; those before are as in the clean run.
            entering: what enters the decoder and is added in it, in place of the clean run's; `first` is 0 then.
        """
        keep = keep & self.graph.exists
        change = self.pair.change
        now = Written(change.embed, change.added)
        if entering is not None:
            now = entering.minus(Written(self.pair.corrupt.embed, self.pair.corrupt.added))
        for layer in range(first):
            now.z[layer], now.mlp[layer] = change.z[layer], change.mlp[layer]
        with torch.no_grad(), attention.switched(self.decoder.configs):
            for layer in range(first, self.graph.n_layers):
                self._layer(layer, now, keep)
            entries = self.graph.of_layer(self.graph.n_layers)
            nodes, last = len(self.graph.nodes), self.whole.last
            final = self._inputs(self.final, now, keep[:, entries], nodes, self.graph.n_layers, last)[0]
            logits = self.whole.decoder.logits(final)
        return logit_difference(logits, self.whole.contrast.ids).cpu()


class TowerForwards(PatchedLayers):
    """Patched forwards of a vision tower.

    Args:
        pair: made with `keep_corrupt=True`.
    """

    def __init__(self, pair: TowerPair) -> None:
        super().__init__(pair)
        self.stack = pair.decoder
        self.corrupt: dict[int, Tensor] = dict(zip(self.stack.reads, self.left, strict=True))

    def leaving(self, keep: Keep) -> list[Tensor]:
        """What the projector reads with some edges kept, behind each layer that it reads from."""
        keep = keep & self.graph.exists
        now, n_layers = Written(self.pair.change.embed), self.graph.n_layers
        own = keep[:, self.graph.of_layer(n_layers)]
        with torch.no_grad():
            for layer in range(n_layers):
                self._layer(layer, now, keep)
            return [self._read(layer, now, own[:, [place]]) for place, layer in enumerate(self.stack.reads)]

    def _read(self, layer: int, now: Written, keep: Keep) -> Tensor:
        """What the projector reads behind a layer."""
        before, found = self.graph.before(layer + 1, LOGITS), self.corrupt[layer].clone()
        for places in self._chunks(keep):
            base = found[places.rows, places.positions]
            read = self._inputs(base, now, keep, before, layer + 1, places)
            found[places.rows, places.positions] = read[0]
        return found


class JointForwards:
    """Patched forwards of a pair from the first layer that sees pixels on, or where its edges begin.

    Args:
        pair: made with `keep_corrupt=True`.
    """

    def __init__(self, pair: Pair) -> None:
        self.pair, self.decoder = pair, PatchedForwards(pair)
        self.tower = None if pair.tower is None else TowerForwards(pair.tower)

    def logit_differences(self, keep: Keep, first: int = 0) -> Float[Tensor, " batch"]:
        """As of `PatchedForwards`, with edges of the tower among them if there are."""
        whole, tower = self.pair.whole, self.pair.tower
        if not isinstance(whole, JointGraph) or tower is None or self.tower is None:
            return self.decoder.logit_differences(keep, first)
        mine, of_tower = whole.split(keep)
        if bool(of_tower[whole.tower.exists].all()):
            return self.decoder.logit_differences(mine, first)
        with torch.no_grad():
            entering = Written(*tower.entering(self.tower.leaving(of_tower), self.pair.clean.embed))
        return self.decoder.logit_differences(mine, 0, entering)


def _returning(tensor: Tensor) -> Any:
    """A hook that returns a tensor whatever the module did."""

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor:
        return tensor

    return hook
