"""Attention knockout: forbid rows to attend to keys (Geva et al., arXiv:2304.14767; Zhang et al., arXiv:2411.18620).

Setting the probabilities of the forbidden keys to 0 and renormalising the row is exactly the masked softmax.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import torch
from torch import Tensor

from ..core.kernels import changed_by, cut_by, halves_of, knockout
from ..core.sinks import sinks_of
from ..core.taps import Tap, TapContext
from ..errors import InterventionError
from ..hooks.heads import DECODER
from ..hooks.points import ModelShape
from ..prompts.prompt import Prompt
from ..prompts.rows import RowsLike, bind_rows
from ..sinks.auto import Auto, is_auto, settled
from ..sinks.rule import SinkRule
from .base import (
    AutoSinks,
    Intervention,
    checked_part,
    layers_with_heads,
    plain_rows,
    shown,
    shown_part,
    whole_numbers,
)

PICTURES = ("image", "visual")  # the sources that are all that a cross-attention layer sees


@dataclass(frozen=True)
class Knockout(Intervention):
    """Forbid the target rows to attend to the source keys, in a window of layers.

    A row that sees source keys only (the first token, if it is forbidden to see itself) is left as it is.

    In layers of cross-attention, whose keys are the pictures and no tokens, the source "image" (or "visual") forbids
    all keys: the heads then give 0, so that the layer's attention adds nothing to the target rows; its feed-forward
    still runs. Other sources do not act there.

    Args:
        source: keys: a mask name ("image", "question", "last", ...), positions, or Bool[batch, position].
        target: rows, named alike.
        layers: which layers; None for all. `Knockout.window` gives the usual ones.
        heads: which heads of these layers; None for all.
        part: "decoder", or "vision": between tokens of the vision tower ("all", "image", "class", "register",
            positions).

    Raises:
        InterventionError: the source selects no token of the prompt.
    """

    source: RowsLike
    target: RowsLike
    layers: tuple[int, ...] | None
    heads: tuple[int, ...] | None
    part: str

    why_nothing = "the target rows were not reached, see no key of the source, or nothing else"

    def __init__(
        self,
        source: RowsLike,
        target: RowsLike = "last",
        layers: Iterable[int] | None = None,
        heads: Iterable[int] | None = None,
        part: str = DECODER,
    ) -> None:
        self._set(
            part=checked_part(part),
            source=plain_rows(source),
            target=plain_rows(target),
            layers=None if layers is None else whole_numbers(layers, "Knockout", "layers"),
            heads=None if heads is None else whole_numbers(heads, "Knockout", "heads"),
        )

    @staticmethod
    def window(center: int, k: int = 9, n_layers: int | None = None) -> range:
        """Layers max(0, l - k//2) .. l + ceil(k/2) - 1 around layer l, cut at the model's last layer if given."""
        stop = center + -(-k // 2)
        return range(max(0, center - k // 2), stop if n_layers is None else min(stop, n_layers))

    def taps(self, prompt: Prompt, shape: ModelShape) -> list[Tap]:
        """One edit of the pattern a layer."""
        source, rows = bind_rows(self.source, prompt), bind_rows(self.target, prompt)
        if not source.reaches():
            raise InterventionError(f"Knockout's source {shown(self.source)} selects no token of this prompt")

        crossing = shape.crossing if isinstance(self.source, str) and self.source in PICTURES else []

        def growth(pattern: Tensor, context: TapContext) -> Tensor:
            if context.layer in crossing:
                context.note(context.only_valid(pattern.sum(-1)))
                return torch.full_like(pattern, -1.0)
            grown, sums = knockout(pattern, context.halves(source, context.n_keys, pattern.dtype))
            context.note_as(changed_by, context.valid_rows(sums))
            return grown

        layers = layers_with_heads(self.layers, shape, bool(crossing))
        outside = sorted({h for h in self.heads or () for layer in layers if not 0 <= h < shape.n_heads[layer]})
        if outside:
            raise InterventionError(f"heads {outside} are out of range: layers have {max(shape.n_heads)} heads")
        keeps_sums = {layer: layer not in crossing for layer in layers}
        hides = {layer: source if self.heads is None and keeps_sums[layer] else None for layer in layers}
        return [Tap.of_growth(layer, rows, growth, self.heads, keeps_sums[layer], hides[layer]) for layer in layers]

    def __repr__(self) -> str:
        layers = "all" if self.layers is None else list(self.layers)
        heads = "" if self.heads is None else f", heads={list(self.heads)}"
        return f"Knockout({shown(self.source)} -> {shown(self.target)}, layers={layers}{heads}{shown_part(self)})"


@dataclass(frozen=True)
class KnockoutSinks(Intervention):
    """Forbid the rows after the image to attend to the visual sinks of each layer, or to as many random patches.

    The control experiment of Kang et al. (ICLR 2025, arXiv:2503.03321): blocking the sinks leaves scores nearly flat,
    blocking as many random image tokens drops them.

    Args:
        sink_dims: the sink dimensions, or "auto", as for `VAR`.
        sink_threshold: tau, or "auto".
        control: None knocks out the sinks; a seed knocks out as many random visual tokens that are no sinks.
        rows: the rows that are forbidden to see them.
        layers: which layers; None for all.
    """

    sink_dims: tuple[int, ...] | Auto
    sink_threshold: float | Auto = 20.0
    control: int | None = None
    rows: RowsLike = "after_image"
    layers: Iterable[int] | None = None

    why_nothing = "no layer has a visual sink"

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", plain_rows(self.rows))
        if not is_auto("sink_dims", self.sink_dims, InterventionError):
            object.__setattr__(self, "sink_dims", whole_numbers(self.sink_dims, "KnockoutSinks", "sink_dims"))
        is_auto("sink_threshold", self.sink_threshold, InterventionError)
        if not isinstance(self.sink_threshold, (int, float, str)):
            raise InterventionError(f"KnockoutSinks: sink_threshold is a number, given {self.sink_threshold!r}")
        if self.layers is not None:
            object.__setattr__(self, "layers", whole_numbers(self.layers, "KnockoutSinks", "layers"))

    def control_of(self, seed: int = 0) -> KnockoutSinks:
        """Its control: as many random patches that are no sinks."""
        return replace(self, control=seed)

    def resolve(self, prompt: Prompt, sinks_on: AutoSinks) -> Self:
        """With "auto" replaced by what `find_sinks` finds; InterventionError if that is nothing."""
        given = self.sink_dims, self.sink_threshold
        if "auto" not in given:
            return self
        found = settled(*given, partial(sinks_on, prompt), InterventionError, "there are none to knock out")
        return replace(self, sink_dims=found[0], sink_threshold=found[1])

    def taps(self, prompt: Prompt, shape: ModelShape) -> list[Tap]:
        """Find the sinks of each layer, then edit its pattern."""
        assert self.sink_dims != "auto"
        assert self.sink_threshold != "auto"
        rule = SinkRule(self.sink_dims, self.sink_threshold, control=self.control).checked(shape.d_model)
        visual, rows = prompt.mask("visual"), bind_rows(self.rows, prompt)

        sinks_key = rule.key

        def growth(pattern: Tensor, context: TapContext) -> Tensor:
            seen = context.columns(visual, context.n_keys)
            sinks = seen & context.columns(sinks_of(context, sinks_key), context.n_keys)
            grown, sums = knockout(pattern, halves_of(sinks, pattern.dtype))
            context.note_as(cut_by, context.valid_rows(sums))
            return grown

        layers = layers_with_heads(self.layers, shape)
        taps = [rule.tap(prompt, layer) for layer in layers]
        return taps + [Tap.of_growth(layer, rows, growth) for layer in layers]

    def __repr__(self) -> str:
        what = "visual sinks" if self.control is None else f"as many random patches (seed {self.control})"
        return f"KnockoutSinks({what} -> {shown(self.rows)})"
