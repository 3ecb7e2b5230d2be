"""Hook points, what a tap must know of a model, and reads: the one mechanism behind every read and every edit.

A tap (`lmm_lens.core.taps`) says where (hook point, layer, heads, rows) and holds a function of the selected rows. A
reading tap's function returns what to keep; an editing tap's returns the rows to put back. Backends only fetch and
store rows; what is done with them is the same in each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from ..core.taps import Tap, TapContext, TapFunction
from ..errors import HookError, unknown
from ..prompts.prompt import Prompt
from ..prompts.rows import RowsLike, bind_rows
from ..prompts.text_config import text_config_of
from .heads import check_head, check_layer
from .projector import PROJECTOR, levels_of, reading, visual_rows

if TYPE_CHECKING:
    from ..adapters import Adapter
    from ..adapters.towers import Tower


class HookPoint(NamedTuple):
    """Shape and meaning of one hook point."""

    shape: str
    meaning: str
    by_head: bool
    needs_attention: bool


HOOK_POINTS: dict[str, HookPoint] = {
    "resid_pre": HookPoint("batch query d_model", "the residual stream that enters the layer", False, False),
    "pattern": HookPoint("batch head query key", "attention probabilities after the softmax", True, True),
    "z": HookPoint("batch query head d_head", "the heads' outputs before the output projection W_O", True, True),
    "attn_out": HookPoint("batch query d_model", "the output of the attention module", False, True),
    "mlp_out": HookPoint("batch query d_model", "the output of the feed-forward module", False, False),
    "resid_post": HookPoint("batch query d_model", "the residual stream that leaves the layer", False, False),
}
"""TransformerLens's hook names without `blocks.l.` and `hook_`, in the order in which they fire in a layer."""


TOWER = "vision."
"""Before the name of a hook point of the vision tower."""


class ModelShape(NamedTuple):
    """What an intervention must know of a model to be bound to it.

    Attributes:
        n_layers: decoder layers.
        n_heads: query heads of each layer, 0 for layers without attention.
        d_head: head size of each layer.
        d_model: width of the residual stream.
        cross_attention: the layers whose keys are not the sequence but the vision tower's output.
        reinjected: the layers after layer 0 that visual features enter again (deepstack).
    """

    n_layers: int
    n_heads: tuple[int, ...]
    d_head: tuple[int, ...]
    d_model: int
    cross_attention: tuple[bool, ...]
    reinjected: tuple[int, ...] = ()

    @classmethod
    def of(cls, adapter: Adapter) -> ModelShape:
        """The shape of an adapter's model."""
        layers, config = adapter.layers, adapter.config
        return cls(
            n_layers=len(layers),
            n_heads=tuple(layer.n_heads for layer in layers),
            d_head=tuple(layer.d_head for layer in layers),
            cross_attention=tuple(layer.is_cross_attention for layer in layers),
            d_model=text_config_of(config).hidden_size,
            reinjected=tuple(layer for layer in _reinjected(config) if 0 < layer < len(layers)),
        )

    @classmethod
    def of_tower(cls, tower: Tower) -> ModelShape:
        """The shape of a vision tower."""
        return cls(
            n_layers=len(tower.layers),
            n_heads=tuple(layer.n_heads for layer in tower.layers),
            d_head=tuple(layer.d_head for layer in tower.layers),
            cross_attention=(False,) * len(tower.layers),
            d_model=tower.d_model,
        )

    @property
    def reinjects(self) -> bool:
        """Whether visual features enter again after layer 0."""
        return bool(self.reinjected)

    @property
    def crossing(self) -> list[int]:
        """The layers whose keys are pictures, not tokens of the sequence."""
        return [layer for layer in range(self.n_layers) if self.n_heads[layer] and self.cross_attention[layer]]

    @property
    def self_attention(self) -> list[int]:
        """The layers with heads whose keys are the sequence, so that masks over tokens apply to them."""
        return [layer for layer in range(self.n_layers) if self.n_heads[layer] and not self.cross_attention[layer]]


def _reinjected(config: Any) -> list[int]:
    """The layers before which a model adds visual features, as its config says."""
    vision = getattr(config, "vision_config", None)
    behind = len(getattr(vision, "deepstack_visual_indexes", None) or ())  # behind the first so many layers
    named = [layer for _, layer in getattr(config, "deepstack_layer_map", None) or ()]  # Granite 4: before these
    named += getattr(config, "spatial_target_layers", None) or () if named else ()
    return sorted({*range(1, behind + 1), *named})


@runtime_checkable
class Reader(Protocol):
    """Anything that turns into reading taps on a prompt: `Read`, or several of them that work together."""

    def taps(self, prompt: Prompt, shape: ModelShape) -> list[Tap]:
        """The taps of this reader on a prompt and a model of this shape."""


@dataclass(frozen=True)
class Read:
    """Rows of an activation to be returned by a run, reduced on the spot if asked.

    Args:
        site: a hook point; `HOOK_POINTS` lists them. Of the vision tower with "vision." before it, as in
            "vision.pattern"; rows are then "all", "image" (patches), "class", "register", positions or a mask. Or
            "projector", what enters the decoder for each visual token; with deepstack at several layers.
        layers: which layers; None for all that have the hook point.
        heads: which heads, at `pattern` and `z`; None for all.
        rows: which query rows; see `lmm_lens.prompts.rows`.
        reduce: a function (rows, context) -> tensor applied at once, so that nothing large is kept. It must act on each
            row alone and keep the row dimension where it stands.
        name: the name of the result, the site's by default.

    The result is `run.reads[name, layer]`, [batch, query, ...] (at `pattern` [batch, head, query, ...]); batch rows
    with fewer selected query rows than others are filled with NaN. Entry i is the token at
    `run.positions[name][batch row, i]`: padding is never read, so in a padded batch it is not the token at position i.
    The keys of a pattern are the tokens from the first on, also in layers that hold only a window of them while the
    model generates: to a token outside there is no attention. A reduction gets the keys that the layer holds, as all
    else in its context is; `context.on_tokens(rows)` gives the others.
    """

    site: str
    layers: Sequence[int] | None = None
    heads: Sequence[int] | None = None
    rows: RowsLike = "all"
    reduce: TapFunction | None = None
    name: str | None = None

    @property
    def in_tower(self) -> bool:
        """Whether it is of the vision tower."""
        return isinstance(self.site, str) and self.site.startswith(TOWER)

    def taps(self, prompt: Prompt, shape: ModelShape) -> list[Tap]:
        """Bind to a prompt and a model; HookError for a site, layer, head or row scope that does not exist.

        One of the vision tower is bound to what the tower runs (`lmm_lens.prompts.tower`), and to its shape.
        """
        if self.site == PROJECTOR:
            return self._of_projector(prompt, shape)
        site = check_site(self.site.removeprefix(TOWER) if self.in_tower else self.site)
        by_head = HOOK_POINTS[site].by_head
        for name, given in (("layers", self.layers), ("heads", self.heads)):
            if given is not None and not isinstance(given, Iterable):
                raise HookError(f"{name} is a list of whole numbers, as in [{given}], given {given!r}")
        if self.heads is not None and not len(self.heads):
            raise HookError(f"no heads were given to read at {self.site}; None is all")
        if self.heads is not None and not by_head:
            raise HookError(f"{self.site} has no heads, so heads={list(self.heads)} cannot be read there")
        if self.layers is None:
            lacking = HOOK_POINTS[site].needs_attention
            layers = [layer for layer in range(shape.n_layers) if shape.n_heads[layer] or not lacking]
        else:
            layers = [check_layer(layer, shape.n_layers) for layer in self.layers]
        heads = None if self.heads is None else tuple(self.heads)
        for layer in layers:
            if heads is not None:
                heads = tuple(check_head(layer, head, shape.n_layers, shape.n_heads[layer])[1] for head in heads)
        rows = bind_rows(self.rows, prompt)
        name = self.name or self.site
        of_tokens = [site == "pattern" and not self.in_tower and not shape.cross_attention[layer] for layer in layers]
        return [
            Tap(site, layer, rows, _keeping(self.reduce, on_tokens), heads, name=name)
            for layer, on_tokens in zip(layers, of_tokens, strict=True)
        ]

    def _of_projector(self, prompt: Prompt, shape: ModelShape) -> list[Tap]:
        if self.heads is not None:
            raise HookError(f"{PROJECTOR} has no heads, so heads={list(self.heads)} cannot be read there")
        levels, rows = levels_of(shape, self.layers), visual_rows(self.rows, prompt)
        return reading(levels, rows, prompt.n_tokens, self.name or self.site, self.reduce)


def _keeping(reduce: TapFunction | None, on_tokens: bool) -> TapFunction:
    """What a read does with its rows; `on_tokens` for patterns over the sequence."""

    def keep(rows: Tensor, context: TapContext) -> Tensor:
        own = rows.clone()  # a reduction may work in place
        if reduce is not None:
            return reduce(own, context)
        return context.on_tokens(own) if on_tokens else own

    return keep


def check_site(site: str) -> str:
    """The hook point's name, if there is one; HookError that lists them otherwise."""
    if site not in HOOK_POINTS:
        raise HookError(unknown("hook point", site, [*HOOK_POINTS, PROJECTOR]))
    return site
