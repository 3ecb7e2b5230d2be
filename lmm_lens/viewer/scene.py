"""A scene: one prompt row as the page shows it, by one run or by two side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import HookError
from ..hooks.heads import DECODER, HeadSet
from ..readouts.reading import Reading
from .masses import Map
from .packing import Packed, floats, pack_weights
from .panels import panels_of
from .reading import ShownAttention
from .said import words_of
from .sequence import TokenRow


@dataclass(frozen=True, eq=False)
class Side:
    """What one run shows of a prompt row.

    Attributes:
        label: what the page calls the run; "" where it is the only one.
        attention: what was read.
        maps: numbers of the heads, the one shown first in front.
    """

    label: str
    attention: ShownAttention
    maps: Sequence[Map]

    def packed(self, tokens: TokenRow, steps: int) -> list[Packed]:
        """Its weights on real tokens, a query after the other."""
        return [pack_weights(each, steps) for each in self.attention.values[..., tokens.mask("all")]]

    def about(self, key_of: dict[int, int]) -> dict[str, Any]:
        """For the page: all but the weights."""
        sinks = self.attention.sinks
        known = sinks.of_layer
        layers = self.attention.layers
        return {
            "label": self.label,
            "values": [floats(each.values) for each in self.maps],
            "sinks": None if known is None else [[key_of[p] for p in known.get(layer, ())] for layer in layers],
            "sinkRule": sinks.about,
            "next": self.attention.next_tokens,
        }


@dataclass(frozen=True, eq=False)
class Scene:
    """One prompt row.

    Attributes:
        tokens: those that it shows.
        sides: by one run, or by two that read the same queries, layers and heads.
        title: its heading.
        model: a line that says what model this is.
        mark: heads to outline.
        words: what its tokens say after each layer.
        part: of the model whose heads these are, "decoder" or "vision".
    """

    tokens: TokenRow
    sides: tuple[Side, ...]
    title: str
    model: str
    mark: HeadSet | None
    words: Reading | None = None
    part: str = DECODER

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Queries, layers, heads and tokens shown."""
        first = self.sides[0].attention
        return len(first.queries), len(first.layers), len(first.heads), len(self.tokens.positions)

    @property
    def n_values(self) -> int:
        """Weights on the page."""
        queries, layers, heads, keys = self.shape
        return len(self.sides) * queries * layers * heads * keys

    def about(self, steps: int) -> dict[str, Any]:
        """For the page: everything but the weights."""
        key_of, first = self.tokens.keys, self.sides[0]
        return {
            "title": self.title,
            "part": self.part,
            "model": self.model,
            "answer": self.tokens.answer,
            "positions": [position if position >= 0 else None for position in self.tokens.positions],
            "texts": self.tokens.texts,
            "roles": self.tokens.roles,
            "pieces": self.tokens.pieces(),
            "panels": [panel.drawn(key_of) for panel in panels_of(self.tokens.prompt, self.tokens.row)],
            "layers": first.attention.layers,
            "heads": first.attention.heads,
            "queries": [key_of.get(position) for position in first.attention.queries],
            "queryNames": [self.tokens.name_of_query(position) for position in first.attention.queries],
            "steps": steps,
            "maps": [{"name": m.name, "label": m.label, "meaning": m.meaning, "unit": m.unit} for m in first.maps],
            "sides": [side.about(key_of) for side in self.sides],
            "words": words_of(self.words, self.tokens),
            "omitted": first.attention.omitted,
            "mark": [] if self.mark is None else [list(head) for head in self.mark],
        }


def side_by_side(first: Side, second: Side, tokens: TokenRow, others: TokenRow) -> tuple[Side, Side]:
    """Two runs of one prompt row with the maps that both have.

    Raises:
        HookError: they hold other queries, layers or heads, or generated other tokens.
    """
    held: list[dict[str, list[Any]]] = [
        {"tokens": texts, **{name: list(getattr(side.attention, name)) for name in ("queries", "layers", "heads")}}
        for side, texts in ((first, tokens.texts), (second, others.texts))
    ]
    for name in held[0]:
        mine, other = (each[name] for each in held)
        if mine == other:
            continue
        if name == "tokens":
            raise HookError(
                f"the two runs generated other tokens: {tokens.answer!r} and {others.answer!r}\n"
                "  show them as two views, or the run of the prompt that each began with"
            )
        raise HookError(
            f"the two runs hold other {name}: {first.label} {mine}, {second.label} {other}\n"
            '  read the same of both: lens.run(prompt, edits, read=[Read("pattern", layers, rows=...)])'
        )
    common = {each.name for each in first.maps} & {each.name for each in second.maps}
    kept = [[each for each in side.maps if each.name in common] for side in (first, second)]
    return Side(first.label, first.attention, kept[0]), Side(second.label, second.attention, kept[1])
