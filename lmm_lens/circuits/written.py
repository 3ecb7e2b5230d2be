"""What the nodes of a decoder write into the residual stream, kept as z of the heads: never a d_model vector a head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from .parts import Parts
from .watching import Seen

CHUNK_ELEMENTS = 2**23
"""Numbers that one chunk of written vectors may have: 32 MiB of fp32."""


@dataclass(eq=False)
class Written:
    """What the nodes wrote in one forward, or the difference between two.

    Attributes:
        embed: Float[batch, position, d_model], the input embeddings with the pictures merged in.
        added: by layer, Float[batch, position, d_model], what was added behind it.
        z: by layer, Float[batch, position, head, d_head], times the scale with which it is written.
        mlp: by layer, Float[batch, position, d_model].
    """

    embed: Tensor
    added: Mapping[int, Tensor] = field(default_factory=dict)
    z: dict[int, Tensor] = field(default_factory=dict)
    mlp: dict[int, Tensor] = field(default_factory=dict)

    def note(self, layer: int, seen: Seen, parts: Parts) -> None:
        """Keep what a layer wrote."""
        self.z[layer] = seen.z(parts).detach()
        self.mlp[layer] = seen.mlp_written(parts).detach().clone()

    def minus(self, other: Written) -> Written:
        """The difference; this one is used up for it."""
        embed = self.embed - other.embed
        added = {layer: x - other.added[layer] for layer, x in self.added.items()}
        found = Written(embed, added)
        for layer in list(self.z):
            found.z[layer] = self.z.pop(layer) - other.z[layer]
            found.mlp[layer] = self.mlp.pop(layer) - other.mlp[layer]
        return found

    def vectors(
        self,
        outputs: Sequence[Tensor],
        rows: Int[Tensor, " place"],
        positions: Int[Tensor, " place"],
        n_layers: int | None = None,
    ) -> Float[Tensor, "node place d_model"]:
        """What each node wrote at some places, as vectors of the stream; the nodes as `Graph.nodes` lists them.

        Args:
            outputs: W_O of each layer, Float[head, d_head, d_model].
            rows, positions: the places, batch row and position of each.
            n_layers: of the first layers alone, and of the next one's heads if they have written.
        """
        device = self.embed.device
        found = [self.embed[rows, positions][None]]
        for layer in sorted(self.z):
            if n_layers is not None and layer > n_layers:
                break
            z = self.z[layer][rows, positions]
            found.append(torch.einsum("phd,hdm->hpm", z, outputs[layer].to(z.dtype)).to(device))
            if layer in self.mlp and layer != n_layers:
                found.append(self.mlp[layer][rows, positions][None].to(device))
                if layer in self.added:
                    found.append(self.added[layer][rows, positions][None].to(device))
        return torch.cat(found)


@dataclass(frozen=True, eq=False)
class Places:
    """Tokens of a batch, each in one span, in runs that have one batch row and one span.

    Attributes:
        rows, positions: of each token.
        runs: (batch row, span, start, stop) of each run of them.
    """

    rows: Int[Tensor, " place"]
    positions: Int[Tensor, " place"]
    runs: tuple[tuple[int, int, int, int], ...]

    @classmethod
    def of(cls, masks: Sequence[Tensor]) -> Places:
        """All tokens of some spans, Bool[batch, position] each."""
        rows, positions, runs, n = [], [], [], 0
        for row in range(len(masks[0])):
            for span, mask in enumerate(masks):
                found = mask[row].nonzero().flatten()
                if len(found):
                    rows.append(torch.full_like(found, row))
                    positions.append(found)
                    runs.append((row, span, n, n + len(found)))
                    n += len(found)
        return cls(torch.cat(rows), torch.cat(positions), tuple(runs))

    def chunks(self, n_vectors: int, d_model: int) -> list[Places]:
        """The same in pieces of so few tokens that so many vectors of each fit into `CHUNK_ELEMENTS`."""
        size = max(1, CHUNK_ELEMENTS // (n_vectors * d_model))
        found = []
        for start in range(0, len(self.rows), size):
            stop = min(start + size, len(self.rows))
            runs = tuple(
                (row, span, max(first, start) - start, min(last, stop) - start)
                for row, span, first, last in self.runs
                if first < stop and last > start
            )
            found.append(Places(self.rows[start:stop], self.positions[start:stop], runs))
        return found
