"""Steer: add a direction to the residual stream that leaves some layers, at prefill and while generating.

    h' = h + strength v                                              the difference itself, strength times
    h' = |h| unit(unit(h) + strength unit(v))                        keep_norm: turned towards it, as long as before

The second is how the code of VTI (Liu et al., arXiv:2410.15778) adds, after it, to what the MLP gives; here it is the
stream that is turned.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import isfinite

import torch
from torch import Tensor

from ..core.taps import Tap, TapContext, TapFunction
from ..errors import InterventionError
from ..hooks.heads import check_layer
from ..hooks.points import ModelShape
from ..interventions.base import Intervention, plain_rows, shown, whole_numbers
from ..prompts.prompt import Prompt
from ..prompts.rows import RowsLike, bind_rows
from .directions import Direction


@dataclass(frozen=True)
class Steer(Intervention):
    """Add a direction to `resid_post` of some layers.

    Args:
        direction: from `direction`, a file, or a `Direction` of your own vectors.
        layers: which layers; None for all that the direction has.
        rows: which query rows: "all" (generated tokens included), "image", "generating", ...; see `AblateHeads`.
        strength: how many times the vector is added, below 0 to take it away; with `keep_norm`, in units of the row's
            own length.
        keep_norm: turn the row towards the direction and keep its length.

    Raises:
        InterventionError: no strength, a layer that the direction has no vector for, layers in all of which it is 0; in
            a run, a direction of a model of other layers or another width.
    """

    direction: Direction
    layers: Iterable[int] | None = None
    rows: RowsLike = "all"
    strength: float = 1.0
    keep_norm: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.direction, Direction):
            raise InterventionError(
                f"Steer takes a Direction, given {type(self.direction).__name__}\n"
                "  direction(lens, with_, without) finds one; Direction(values, layers) is one of your own vectors"
            )
        number = self.strength
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not number or not isfinite(number):
            raise InterventionError(f"Steer: strength is a number other than 0, given {number!r}")
        chosen = self.direction.layers if self.layers is None else whole_numbers(self.layers, "Steer", "layers")
        if not bool(torch.stack([self.direction.at(layer) for layer in chosen]).any()):
            raise InterventionError(f"Steer: the direction is 0 in layers {list(chosen)}, so adding it changes nothing")
        object.__setattr__(self, "layers", chosen)
        object.__setattr__(self, "rows", plain_rows(self.rows))

    def control_of(self, seed: int = 0) -> Steer:
        """The same with a random direction of the same norm, in the same rows and layers."""
        return replace(self, direction=self.direction.random_like(seed))

    def taps(self, prompt: Prompt, shape: ModelShape) -> list[Tap]:
        """One edit of resid_post a layer."""
        width, n_layers = self.direction.values.shape[1], self.direction.model.get("n_layers", shape.n_layers)
        if (width, n_layers) != (shape.d_model, shape.n_layers):
            raise InterventionError(
                f"the direction was found in a model of {n_layers} layers x {width}, this one has "
                f"{shape.n_layers} x {shape.d_model}"
            )
        rows, add = bind_rows(self.rows, prompt), _turned if self.keep_norm else _added
        assert self.layers is not None
        return [
            Tap(
                "resid_post",
                check_layer(layer, shape.n_layers),
                rows,
                add(self.direction.at(layer), self.strength),
                edits=True,
            )
            for layer in self.layers
        ]

    def __repr__(self) -> str:
        control = "" if self.direction.control is None else f"random direction (seed {self.direction.control}), "
        kept = ", keep_norm=True" if self.keep_norm else ""
        assert self.layers is not None
        return f"Steer({control}layers={list(self.layers)}, rows={shown(self.rows)}, strength={self.strength:g}{kept})"


def _added(vector: Tensor, strength: float) -> TapFunction:
    """`h + strength v`."""

    def add(stream: Tensor, context: TapContext) -> Tensor:
        wide = stream.to(torch.promote_types(stream.dtype, torch.float32))
        return wide + strength * vector.to(wide)

    return add


def _turned(vector: Tensor, strength: float) -> TapFunction:
    """`|h| unit(unit(h) + strength unit(v))`."""

    def turn(stream: Tensor, context: TapContext) -> Tensor:
        wide = stream.to(torch.promote_types(stream.dtype, torch.float32))
        along = torch.nn.functional.normalize(vector.to(wide), dim=-1)
        mixed = torch.nn.functional.normalize(wide, dim=-1) + strength * along
        length: Tensor = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        return length * torch.nn.functional.normalize(mixed, dim=-1)

    return turn
