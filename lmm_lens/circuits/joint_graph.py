"""A decoder's graph and that of the vision tower before it, as one: the projector stands between them.

Nodes of the tower: what enters its first layer ("patches"), each head ("V2H3"), each feed-forward part ("V2 MLP"). Its
entries: q, k and v of its heads, its feed-forward parts, and the projector, which reads what leaves the layers that the
features come from. What the projector gives is what the decoder's node "embed" writes at visual tokens, and, with
deepstack, what its "deepstack" nodes write; so no edge runs from the tower past it. Spans of the tower are those of its
own tokens: "vision image" (patches), "vision class", "vision register".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from .graph import EMBED, LOGITS, MLP, Entry, Graph, Node

IN_TOWER = "vision "
"""Before kinds and spans of the tower."""


class TowerNode(NamedTuple):
    """What writes into the tower's residual stream; fields as of `Node`."""

    kind: str
    layer: int
    head: int = 0

    def __str__(self) -> str:
        inner = self.kind.removeprefix(IN_TOWER)
        return "patches" if inner == EMBED else f"V{self.layer} MLP" if inner == MLP else f"V{self.layer}H{self.head}"


class TowerEntry(NamedTuple):
    """What reads from the tower's residual stream; fields as of `Entry`."""

    kind: str
    layer: int
    head: int = 0
    shared: bool = False

    def __str__(self) -> str:
        inner = self.kind.removeprefix(IN_TOWER)
        if inner in (MLP, LOGITS):
            behind = f" behind V{self.layer - 1}" if self.shared else ""
            return f"projector{behind}" if inner == LOGITS else f"V{self.layer} MLP"
        return f"V{self.layer}H{self.head}.{inner}"


@dataclass(frozen=True)
class JointGraph:
    """All nodes, entries and edges of a decoder and of the tower before it: first the decoder's, then the tower's.

    Attributes:
        decoder: the decoder's graph.
        tower: the tower's, whose logits are the projector.
    """

    decoder: Graph
    tower: Graph

    @property
    def n_layers(self) -> int:
        """Decoder layers."""
        return self.decoder.n_layers

    @property
    def n_heads(self) -> tuple[int, ...]:
        """Query heads of each decoder layer."""
        return self.decoder.n_heads

    @property
    def n_kv(self) -> tuple[int, ...]:
        """Key-value heads of each decoder layer."""
        return self.decoder.n_kv

    @property
    def answer_span(self) -> int:
        """The span of the token at which the logits are read."""
        return self.decoder.answer_span

    @cached_property
    def nodes(self) -> tuple[Node | TowerNode, ...]:
        """All nodes."""
        tower = (TowerNode(f"{IN_TOWER}{node.kind}", node.layer, node.head) for node in self.tower.nodes)
        return (*self.decoder.nodes, *tower)

    @cached_property
    def entries(self) -> tuple[Entry | TowerEntry, ...]:
        """All entries."""
        tower = (TowerEntry(f"{IN_TOWER}{entry.kind}", *entry[1:]) for entry in self.tower.entries)
        return (*self.decoder.entries, *tower)

    @cached_property
    def spans(self) -> tuple[str, ...]:
        """Names of all spans."""
        return (*self.decoder.spans, *(f"{IN_TOWER}{span}" for span in self.tower.spans))

    @cached_property
    def _starts(self) -> Int[Tensor, " 3"]:
        return torch.tensor([len(self.decoder.nodes), len(self.decoder.entries), len(self.decoder.spans)])

    @cached_property
    def exists(self) -> Bool[Tensor, "node entry span"]:
        """Which edges there are."""
        found = torch.zeros(len(self.nodes), len(self.entries), len(self.spans), dtype=torch.bool)
        nodes, entries, spans = self._starts.tolist()
        found[:nodes, :entries, :spans] = self.decoder.exists
        found[nodes:, entries:, spans:] = self.tower.exists
        return found

    @cached_property
    def edges(self) -> Int[Tensor, "edge 3"]:
        """Every edge: the numbers of its node, entry and span."""
        return torch.cat([self.decoder.edges, self.tower.edges + self._starts])

    def split(self, keep: Bool[Tensor, "node entry span"]) -> tuple[Bool[Tensor, "_ _ _"], Bool[Tensor, "_ _ _"]]:
        """A mask over edges as that of the decoder's and that of the tower's."""
        nodes, entries, spans = self._starts.tolist()
        return keep[:nodes, :entries, :spans], keep[nodes:, entries:, spans:]

    def blocks(self) -> Int[Tensor, " edge"]:
        """Of each edge a number that it shares with those between the same two layers at the same span."""
        decoder = self.decoder.blocks()
        return torch.cat([decoder, self.tower.blocks() + decoder.max() + 1])

    def named(self, edge: int) -> tuple[str, str, str]:
        """The names of an edge's node, entry and span."""
        node, entry, span = self.edges[edge].tolist()
        return str(self.nodes[node]), str(self.entries[entry]), self.spans[span]

    def to_dict(self) -> dict[str, Any]:
        """Its parts, of JSON types."""
        return {**self.decoder.to_dict(), "tower": self.tower.to_dict()}


def graph_from_dict(parts: Mapping[str, Any]) -> Graph | JointGraph:
    """The graph that `to_dict` of either described."""
    decoder = Graph.from_dict(parts)
    return decoder if "tower" not in parts else JointGraph(decoder, Graph.from_dict(parts["tower"], to_all=True))
