"""Where an edit acts, for edits that take layers with all of their heads, or chosen heads."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import InterventionError
from ..hooks.points import ModelShape
from .base import Heads, HeadsLike, checked_heads, heads_by_layer, layers_with_heads, shown_heads, whole_numbers

Layers = tuple[int, ...] | None


def checked_where(layers: Iterable[int] | None, heads: HeadsLike | None, name: str) -> tuple[Layers, Heads | None]:
    """Layers or heads, or neither for all; InterventionError for both, or for what is none."""
    if layers is not None and heads is not None:
        raise InterventionError(f"{name} takes layers, with all of their heads, or heads, not both")
    return (
        None if layers is None else whole_numbers(layers, name, "layers"),
        None if heads is None else checked_heads(heads, name),
    )


def at_heads(
    layers: Layers, heads: Heads | None, shape: ModelShape, crossing: bool = False
) -> dict[int, tuple[int, ...] | None]:
    """The heads of each layer that is meant, None for all of them.

    Raises:
        HookError: a layer or head lies outside the model.
        InterventionError: a layer has no self-attention, and, unless `crossing`, one of cross-attention is named.
    """
    if heads is None:
        return dict.fromkeys(layers_with_heads(layers, shape, crossing))
    by_layer = heads_by_layer(heads, shape)
    layers_with_heads(by_layer, shape, crossing)
    return {layer: own for layer, own in by_layer.items()}


def shown_where(layers: Layers, heads: Heads | None) -> str:
    """The end of a repr."""
    where = "" if layers is None else f", layers={list(layers)}"
    return where + ("" if heads is None else f", {shown_heads(heads)}")
