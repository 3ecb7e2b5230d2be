"""Zeros added to activations, whose gradient is that of the answer by these activations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..core.rows import Rows
from ..core.taps import Tap, TapContext
from ..hooks.heads import DECODER
from ..hooks.points import ModelShape
from ..interventions.base import Intervention
from ..prompts.prompt import Prompt


@contextmanager
def differentiable(*modules: nn.Module) -> Iterator[None]:
    """Inside, gradients of activations are on, whatever is switched off around, and those of parameters are off.

    The graph then holds only what probes need.
    """
    trained = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@dataclass(frozen=True, eq=False)
class _Probe(Intervention):
    """Add zeros that remember their gradient, and keep what they were added to. For one run.

    Args:
        site, layers, rows: where.
        part: of the model.

    Attributes:
        found: layer to (activation, probe) of each part of its rows, in order.
    """

    site: str
    layers: tuple[int, ...]
    rows: Rows
    part: str = DECODER
    found: dict[int, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)

    def taps(self, prompt: Prompt, shape: ModelShape) -> list[Tap]:
        """One edit a layer that changes nothing."""
        self.found.update({layer: [] for layer in self.layers})
        return [Tap(self.site, layer, self.rows, self._add, edits=True) for layer in self.layers]

    def _add(self, x: Tensor, context: TapContext) -> Tensor:
        probe = torch.zeros_like(x, requires_grad=True)
        self.found[context.layer].append((x.detach(), probe))
        return x + probe

    @property
    def leaves(self) -> list[Tensor]:
        """The zeros, layer by layer."""
        return [leaf for layer in self.layers for _, leaf in self.found[layer]]

    def whole(self, layer: int, gradients: Iterator[Tensor], width: int) -> tuple[Tensor, Tensor]:
        """A layer's activation, and the gradient by it.

        Args:
            layer: the next one, in the order of `leaves`.
            gradients: by each of them.
            width: of its last dimension; a part of a packed sequence has fewer keys.
        """
        pieces = [(activation, next(gradients)) for activation, _ in self.found[layer]]
        dim = 2 if self.site == "pattern" else 1
        activation, gradient = (
            torch.cat([nn.functional.pad(part, (0, width - part.shape[-1])) for part in parts], dim)
            for parts in zip(*pieces, strict=True)
        )
        return activation, gradient

    def __repr__(self) -> str:
        return f"probing {self.site}"


def probing(site: str, layers: Sequence[int], rows: Rows, part: str = DECODER) -> _Probe:
    """A probe of these rows, for one run."""
    return _Probe(site, tuple(layers), rows, part)


def by_unit(
    product: Float[Tensor, " batch *rest"],
    positions: Int[Tensor, "batch query"],
    site: str,
    by: str,
    masks: Bool[Tensor, "unit batch position"],
) -> Float[Tensor, "batch unit_or_head"]:
    """The sum of (clean - corrupt) * gradient over what belongs to each unit, fp64.

    Args:
        product: of an activation's size.
        positions: of its rows, -1 for padding.
        site: hook point, without the part of the model.
        by: "head", or what `masks` are.
        masks: of the units; heads share one.
    """
    product = product.double()
    if site == "pattern":
        product = product.movedim(2, 1)  # batch query head key
    per_row = product.sum(-1) if by == "head" else product.flatten(2).sum(-1)  # batch row [head]
    padding = (positions < 0).to(per_row.device)
    per_row = per_row.masked_fill(padding.reshape(*padding.shape, *[1] * (per_row.ndim - 2)), 0)
    if by == "head":
        return per_row.sum(1)
    batch = torch.arange(len(positions), device=positions.device)[:, None]
    mine = masks.to(positions.device)[:, batch, positions.clamp_min(0)]
    return torch.einsum("br,ubr->bu", per_row, mine.to(per_row))
