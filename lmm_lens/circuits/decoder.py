"""The decoder layers of a recorded prompt, run by themselves, with gradients if they are on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..backends.native import interface as attention
from ..replay.unembedding import Unembedding
from .parts import Parts
from .watching import Seen, watching

if TYPE_CHECKING:
    from ..adapters import Layer

Given = tuple[tuple[tuple[Any, ...], Mapping[str, Any]], ...]
"""Of each layer, what it is given beside the stream."""


@dataclass(frozen=True, eq=False)
class Decoder:
    """The decoder layers, to be run by themselves on one batch.

    Attributes:
        layers: as an adapter names them.
        parts: of each layer.
        given: of each layer, what it is given beside the stream.
        unembedding: from the last layer's output to the logits.
        configs: the configs that choose the layers' attention function.
        last: Int[batch], the token whose logits count.
    """

    layers: tuple[Layer, ...]
    parts: tuple[Parts, ...]
    given: Given
    unembedding: Unembedding
    configs: Sequence[Any]
    last: Int[Tensor, " batch"]

    def run(
        self,
        embed: Float[Tensor, "batch position d_model"],
        added: Mapping[int, Tensor],
        done: Callable[[int, Seen], None] | None = None,
    ) -> Float[Tensor, "batch d_model"]:
        """Run all layers; the stream behind the last one, at each row's last token.

        Args:
            embed: what enters the first layer.
            added: by layer, what is added behind it.
            done: called at the end of each layer.
        """
        x = embed
        with attention.switched(self.configs), watching(self.layers, done) if done else nullcontext():
            for index, layer in enumerate(self.layers):
                x = self.layer(index, layer, x)
                if index in added:
                    x = x + added[index].to(x.device)
        return x[torch.arange(len(x)), self.last]

    def layer(self, index: int, layer: Layer, x: Tensor) -> Tensor:
        """One layer."""
        args, kwargs = self.given[index]
        out = layer.module(x, *args, **kwargs)
        found: Tensor = out[0] if isinstance(out, tuple) else out
        return found

    def logits(self, final: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch vocab"]:
        """The logits of the stream behind the last layer."""
        return self.unembedding(final[:, None])[:, 0]
