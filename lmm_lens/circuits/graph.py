"""The graph of a decoder: who writes into the residual stream, who reads from it, and the edges between them by span.

A node writes: the merged input embeddings, each head, each feed-forward part, and features that a model adds between
layers (deepstack). An entry reads: the q, k and v inputs of heads, feed-forward parts, the logits. Under grouped
queries the heads of a group share one k and one v entry. An edge is (node, entry, span): at the tokens of one span,
what the node writes there and the entry reads there. From token to token it is the heads that carry, not edges.

Nodes are listed in the order in which they write, so that an entry reads from a prefix of the list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

EMBED, HEAD, MLP, DEEPSTACK = "embed", "head", "mlp", "deepstack"
Q, K, V, LOGITS = "q", "k", "v", "logits"
WHOLE = "all"
"""The only span of a graph that is not divided by span."""


class Node(NamedTuple):
    """What writes into the residual stream.

    Attributes:
        kind: "embed", "head", "mlp" or "deepstack".
        layer: its layer; -1 for the embeddings.
        head: its number, of a head.
    """

    kind: str
    layer: int
    head: int = 0

    def __str__(self) -> str:
        names = {EMBED: EMBED, HEAD: f"L{self.layer}H{self.head}", MLP: f"L{self.layer} MLP"}
        return names.get(self.kind, f"deepstack {self.layer}")


class Entry(NamedTuple):
    """What reads from the residual stream.

    Attributes:
        kind: "q", "k", "v", "mlp" or "logits".
        layer: its layer; the number of layers for the logits.
        head: its number: of a query head for q, of a key-value head for k and v.
        shared: of k and v, whether several query heads use it; of logits, whether a projector reads there before the
            last layer.
    """

    kind: str
    layer: int
    head: int = 0
    shared: bool = False

    def __str__(self) -> str:
        if self.kind in (MLP, LOGITS):
            return LOGITS if self.kind == LOGITS else f"L{self.layer} MLP"
        return f"L{self.layer}{'KV' if self.shared else 'H'}{self.head}.{self.kind}"


@dataclass(frozen=True)
class Graph:
    """All nodes, entries and edges of a model, at the spans of some prompts.

    Attributes:
        n_heads: query heads of each layer.
        n_kv: key-value heads of each layer.
        parallel: of each layer, whether its feed-forward part reads beside the attention and not behind it.
        deepstack: the layers behind which features are added.
        spans: names of the spans; the last token alone is one of them, unless there is only `WHOLE`.
        to_all: whether what stands for the logits reads all tokens, as a projector does behind a vision tower.
        reads: of a tower, the layers behind which the projector reads, too, beside the last.
    """

    n_heads: tuple[int, ...]
    n_kv: tuple[int, ...]
    parallel: tuple[bool, ...]
    deepstack: tuple[int, ...]
    spans: tuple[str, ...]
    to_all: bool = False
    reads: tuple[int, ...] = ()

    @property
    def n_layers(self) -> int:
        """Decoder layers."""
        return len(self.n_heads)

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes, in the order in which they write."""
        found = [Node(EMBED, -1)]
        for layer, n in enumerate(self.n_heads):
            found += [Node(HEAD, layer, head) for head in range(n)]
            found += [Node(MLP, layer), *([Node(DEEPSTACK, layer)] if layer in self.deepstack else [])]
        return tuple(found)

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """All entries: of each layer q of every head, k and v of every key-value head, the feed-forward part."""
        found: list[Entry] = []
        for layer, (n, kv) in enumerate(zip(self.n_heads, self.n_kv, strict=True)):
            found += [Entry(Q, layer, head) for head in range(n)]
            found += [Entry(kind, layer, head, kv < n) for kind in (K, V) for head in range(kv)]
            found.append(Entry(MLP, layer))
        earlier = (Entry(LOGITS, layer + 1, 0, True) for layer in self.reads)
        return (*found, *earlier, Entry(LOGITS, self.n_layers))

    @cached_property
    def _starts(self) -> dict[int, int]:
        """Layer to the number of nodes before its first head."""
        starts, n = {}, 1
        for layer, heads in enumerate(self.n_heads):
            starts[layer] = n
            n += heads + 1 + (layer in self.deepstack)
        return {**starts, self.n_layers: n}

    def before(self, layer: int, kind: str) -> int:
        """How many nodes have written when an entry of a layer reads: it reads from the first so many."""
        start = self._starts[layer]
        return start + self.n_heads[layer] if kind == MLP and not self.parallel[layer] else start

    def of_layer(self, layer: int) -> slice:
        """The entries of a layer; behind the last one the logits, or all that a projector reads."""
        sizes = [n + 2 * kv + 1 for n, kv in zip(self.n_heads, self.n_kv, strict=True)]
        start = sum(sizes[:layer])
        return slice(start, start + (sizes[layer] if layer < self.n_layers else 1 + len(self.reads)))

    @property
    def answer_span(self) -> int:
        """The span of the token at which the logits are read."""
        return self.spans.index("last" if "last" in self.spans else WHOLE)

    @cached_property
    def exists(self) -> Bool[Tensor, "node entry span"]:
        """Which edges there are: written before it is read, where something is written, and with a way to the answer.

        In the last layer queries and the feed-forward part matter at the last token alone; its keys and values at all.
        """
        found = torch.zeros(len(self.nodes), len(self.entries), len(self.spans), dtype=torch.bool)
        for index, entry in enumerate(self.entries):
            spans: Any = slice(None)
            if not self.to_all and (
                entry.kind == LOGITS or (entry.layer == self.n_layers - 1 and entry.kind in (Q, MLP))
            ):
                spans = self.answer_span
            found[: self.before(entry.layer, entry.kind), index, spans] = True
        visual = [span == WHOLE or span.split()[0] in ("image", "video") for span in self.spans]
        added = [node.kind == DEEPSTACK for node in self.nodes]
        found[added] &= torch.tensor(visual)
        return found

    @cached_property
    def edges(self) -> Int[Tensor, "edge 3"]:
        """Every edge: the numbers of its node, entry and span."""
        return self.exists.nonzero()

    def blocks(self) -> Int[Tensor, " edge"]:
        """Of each edge a number that it shares with those between the same two layers at the same span."""
        layers = torch.tensor([node.layer + 1 for node in self.nodes])
        entered = torch.tensor([entry.layer for entry in self.entries])
        node, entry, span = self.edges.T
        found: Tensor = (layers[node] * (self.n_layers + 1) + entered[entry]) * len(self.spans) + span
        return found

    def named(self, edge: int) -> tuple[str, str, str]:
        """The names of an edge's node, entry and span."""
        node, entry, span = self.edges[edge].tolist()
        return str(self.nodes[node]), str(self.entries[entry]), self.spans[span]

    def to_dict(self) -> dict[str, Any]:
        """Its parts, of JSON types."""
        return {
            "n_heads": list(self.n_heads),
            "n_kv": list(self.n_kv),
            "parallel": list(self.parallel),
            "deepstack": list(self.deepstack),
            "spans": list(self.spans),
            **({"reads": list(self.reads)} if self.reads else {}),
        }

    @classmethod
    def from_dict(cls, parts: Mapping[str, Any], to_all: bool = False) -> Graph:
        """The graph that `to_dict` described."""
        named = {name: tuple(parts[name]) for name in ("n_heads", "n_kv", "parallel", "deepstack", "spans")}
        return cls(**named, to_all=to_all, reads=tuple(parts.get("reads", ())))
