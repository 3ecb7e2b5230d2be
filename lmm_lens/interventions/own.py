"""Interventions of one's own, as a function of the rows: where, padding, renormalising and checks are done here.

For more, such as what one layer finds and another uses, subclass `Intervention` and return taps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..core.own import Keys, settled_pattern, settled_rows
from ..core.taps import Tap, TapContext
from ..errors import InterventionError
from ..hooks.heads import check_layer
from ..hooks.points import HOOK_POINTS, ModelShape, check_site
from ..prompts.prompt import MASKS, Prompt
from ..prompts.rows import RowsLike, bind_rows
from .base import Heads, HeadsLike, Intervention, plain_rows, shown
from .where import at_heads, checked_where, shown_where

PatternFunction = Callable[[Tensor, Keys], Tensor]
RowsFunction = Callable[[Tensor, TapContext], Tensor]


@dataclass(frozen=True)
class EditPattern(Intervention):
    """Change where heads look by a function of your own.

        def more(pattern, keys):                                # a third more attention on the image
            return torch.where(keys["image"], 1.3 * pattern, pattern)

        lens.generate(prompt, [EditPattern(more)], max_new_tokens=20)

    The function is given some rows at a time, [batch, head, query, key] in fp32 or better, and must act on each alone.
    It returns the new ones: keys that a row cannot see get nothing whatever it says, and each row is brought back to
    its sum. It acts at prefill and at every step, in layers of self-attention. To travel to a server it may use torch
    and plain values, and is defined in your notebook or script, or in a module given to `nnsight.register`.

    Args:
        function: (pattern, keys) -> pattern; see `lmm_lens.core.own.Keys`.
        rows: which query rows; see `AblateHeads`.
        layers: which layers, all of their heads; None for all.
        heads: in place of layers, a HeadSet or (layer, head) pairs.
        renormalise: whether each row is brought back to the sum that it had.

    Raises:
        InterventionError: no function; layers and heads both; in a run, a function that returns another shape, what is
            not finite, or attention below 0 to be renormalised.
    """

    function: PatternFunction
    rows: RowsLike
    layers: tuple[int, ...] | None
    heads: Heads | None
    renormalise: bool

    why_nothing = "its rows were not reached, or its function left them as they were"

    def __init__(
        self,
        function: PatternFunction,
        rows: RowsLike = "after_image",
        layers: Iterable[int] | None = None,
        heads: HeadsLike | None = None,
        renormalise: bool = True,
    ) -> None:
        _check_function(function, "EditPattern", "(pattern, keys) -> pattern")
        own_layers, own_heads = checked_where(layers, heads, "EditPattern")
        self._set(
            function=function,
            rows=plain_rows(rows),
            layers=own_layers,
            heads=own_heads,
            renormalise=bool(renormalise),
        )

    def taps(self, prompt: Prompt, shape: ModelShape) -> list[Tap]:
        """One edit of the pattern a layer."""
        rows, scopes = bind_rows(self.rows, prompt), {name: bind_rows(name, prompt) for name in MASKS}
        function, name, renormalise = self.function, name_of(self.function), self.renormalise

        def edit(pattern: Tensor, context: TapContext) -> Tensor:
            keys = Keys(context, pattern.shape[-1], scopes)
            edited = settled_pattern(name, pattern, function(pattern.clone(), keys), keys, renormalise)
            change = edited - pattern
            context.note(context.only_valid(change.any(-1)))
            return change

        where = at_heads(self.layers, self.heads, shape)
        return [
            Tap("pattern", layer, rows, edit, own, edits=True, chooses=True, adds=True) for layer, own in where.items()
        ]

    def __repr__(self) -> str:
        sums = "" if self.renormalise else ", renormalise=False"
        where = shown_where(self.layers, self.heads)
        return f"EditPattern({name_of(self.function)}, rows={shown(self.rows)}{where}{sums})"


@dataclass(frozen=True)
class Edit(Intervention):
    """Change rows of an activation by a function of your own: to writing what `Read` is to reading.

        lens.run(prompt, [Edit("z", lambda z, context: 0.5 * z, rows="last", heads=[(1, 4)])])

    The function is given the rows of one layer, a copy of its own, and what is beside them, and must act on each row
    alone. What it may use on a server is told at `EditPattern`.

    Args:
        site: a hook point other than "pattern", which `EditPattern` is for; `HOOK_POINTS` lists them with their shapes.
        function: (rows, context) -> rows; `TapContext` has the layer, the heads, and the rows' positions.
        rows: which query rows; see `AblateHeads`.
        layers: which layers; None for all that have the hook point.
        heads: in place of layers, at "z", a HeadSet or (layer, head) pairs.

    Raises:
        HookError: no such hook point.
        InterventionError: no function; a pattern; heads of what has none; in a run, a function that returns another
            shape or what is not finite.
    """

    site: str
    function: RowsFunction
    rows: RowsLike
    layers: tuple[int, ...] | None
    heads: Heads | None

    def __init__(
        self,
        site: str,
        function: RowsFunction,
        rows: RowsLike = "all",
        layers: Iterable[int] | None = None,
        heads: HeadsLike | None = None,
    ) -> None:
        _check_function(function, "Edit", "(rows, context) -> rows")
        if check_site(site) == "pattern":
            raise InterventionError("Edit changes no pattern: EditPattern does, and keeps its rows attention")
        if heads is not None and not HOOK_POINTS[site].by_head:
            raise InterventionError(f"{site} has no heads to edit; give layers=...")
        own_layers, own_heads = checked_where(layers, heads, "Edit")
        self._set(site=site, function=function, rows=plain_rows(rows), layers=own_layers, heads=own_heads)

    def taps(self, prompt: Prompt, shape: ModelShape) -> list[Tap]:
        """One edit a layer."""
        rows = bind_rows(self.rows, prompt)
        function, name, site = self.function, name_of(self.function), self.site

        def edit(own: Tensor, context: TapContext) -> Tensor:
            return settled_rows(name, site, own, function(own.clone(), context), context)

        if HOOK_POINTS[site].needs_attention:
            where = at_heads(self.layers, self.heads, shape, crossing=True)
        else:
            layers = range(shape.n_layers) if self.layers is None else self.layers
            where = dict.fromkeys(check_layer(layer, shape.n_layers) for layer in layers)
        return [Tap(site, layer, rows, edit, heads, edits=True) for layer, heads in where.items()]

    def __repr__(self) -> str:
        where = shown_where(self.layers, self.heads)
        return f"Edit({self.site}, {name_of(self.function)}, rows={shown(self.rows)}{where})"


def name_of(function: Any) -> str:
    """What a function is called in reports and errors."""
    name = str(getattr(function, "__name__", type(function).__name__))
    return "a lambda" if name == "<lambda>" else name


def _check_function(function: object, name: str, signature: str) -> None:
    if not callable(function):
        raise InterventionError(f"{name} takes a function {signature}, given {function!r}")
