"""A set of attention heads, with the set algebra and the random control that experiments need."""

from __future__ import annotations

import operator
import random
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ..errors import HookError, ScoreError, unknown

if TYPE_CHECKING:
    from torch import Tensor

Head = tuple[int, int]  # (layer, head)

DECODER, VISION = "decoder", "vision"
"""The parts of a model that have heads."""


@dataclass(frozen=True)
class HeadSet:
    """Heads of one model, each a (layer, head) pair, in a fixed order (scores give best first).

    They are of its decoder, or with part="vision" of its vision tower; what is asked of one takes no heads of the
    other. Two sets with the same members are equal whatever their order.

    >>> heads = HeadSet([(3, 1), (0, 2)], n_layers=4, n_heads=8)
    >>> heads
    HeadSet of 2 heads in 4 layers x 8: L3H1 L0H2
    >>> heads.by_layer()
    {0: (2,), 3: (1,)}
    >>> heads | HeadSet([(1, 1)], 4, 8)
    HeadSet of 3 heads in 4 layers x 8: L3H1 L0H2 L1H1

    Raises:
        HookError: a layer or head lies outside the model, or there is no such part.
    """

    heads: tuple[Head, ...]
    n_layers: int
    n_heads: int
    part: str

    def __init__(self, heads: Iterable[Head], n_layers: int, n_heads: int, part: str = DECODER) -> None:
        if part not in (DECODER, VISION):
            raise HookError(unknown("part of the model", part, (DECODER, VISION)))
        ordered = tuple(dict.fromkeys(as_head(head) for head in heads))
        for layer, head in ordered:
            check_head(layer, head, n_layers, n_heads)
        object.__setattr__(self, "heads", ordered)
        object.__setattr__(self, "n_layers", n_layers)
        object.__setattr__(self, "n_heads", n_heads)
        object.__setattr__(self, "part", part)

    def _with(self, heads: Iterable[Head]) -> HeadSet:
        """Other heads of the same part of the same model."""
        return HeadSet(heads, self.n_layers, self.n_heads, self.part)

    @classmethod
    def all(cls, n_layers: int, n_heads: int, layers: Iterable[int] | None = None, part: str = DECODER) -> HeadSet:
        """Every head of the model, or of the given layers."""
        chosen = range(n_layers) if layers is None else layers
        return cls([(layer, head) for layer in chosen for head in range(n_heads)], n_layers, n_heads, part)

    def by_layer(self) -> dict[int, tuple[int, ...]]:
        """The heads of each layer that has any, both in ascending order."""
        layers: dict[int, list[int]] = {}
        for layer, head in sorted(self.heads):
            layers.setdefault(layer, []).append(head)
        return {layer: tuple(heads) for layer, heads in layers.items()}

    def random_like(
        self, seed: int = 0, disjoint: bool | Literal["most"] = True, among: HeadSet | None = None
    ) -> HeadSet:
        """A control: as many random heads in each layer as this set has there.

        Args:
            seed: of the draw; the same seed gives the same heads.
            disjoint: draw only from heads outside this set; "most" draws as few of this set as the layers allow, which
                where one has too few others are some of it, as `shared` tells; False draws among all.
            among: the heads to draw from, as those that an experiment was about; None for all of the layers.

        Raises:
            HookError: a layer has too few other heads for a disjoint control.
        """
        if disjoint not in (True, False, "most"):
            raise HookError(f'disjoint is True, False or "most", given {disjoint!r}')
        draw = random.Random(seed)
        chosen: list[Head] = []
        there = None if among is None else among.by_layer()
        for layer, taken in self.by_layer().items():
            every = list(range(self.n_heads)) if there is None else there.get(layer, [])
            pool = [head for head in every if not (disjoint and head in taken)]
            short = max(0, len(taken) - len(pool))
            if short and disjoint != "most":
                raise HookError(
                    f"layer {layer} has {len(taken)} of its {len(every)} heads in the set, only {len(pool)} others\n"
                    '  take fewer heads, or allow overlap: disjoint="most" for as little as there must be, '
                    "disjoint=False for any"
                )
            drawn = draw.sample(pool, len(taken) - short) + draw.sample(taken, short)
            chosen += [(layer, head) for head in sorted(drawn)]
        return self._with(chosen)

    def shared(self, other: HeadSet) -> dict[int, int]:
        """How many heads of each layer another set has too; layers with none are left out."""
        return {layer: len(heads) for layer, heads in (self & other).by_layer().items()}

    def _combine(self, other: HeadSet, heads: Iterable[Head]) -> HeadSet:
        if (self.n_layers, self.n_heads) != (other.n_layers, other.n_heads):
            raise HookError(
                f"these head sets belong to different models: {self.n_layers} layers x {self.n_heads} heads "
                f"and {other.n_layers} x {other.n_heads}"
            )
        check_part(other, self.part, "a set of the same part")
        return self._with(heads)

    def __or__(self, other: HeadSet) -> HeadSet:
        return self._combine(other, (*self.heads, *other.heads))

    def __and__(self, other: HeadSet) -> HeadSet:
        return self._combine(other, (head for head in self.heads if head in other.heads))

    def __sub__(self, other: HeadSet) -> HeadSet:
        return self._combine(other, (head for head in self.heads if head not in other.heads))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HeadSet) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[frozenset[Head], int, int, str]:
        return frozenset(self.heads), self.n_layers, self.n_heads, self.part

    def __len__(self) -> int:
        return len(self.heads)

    def __iter__(self) -> Iterator[Head]:
        return iter(self.heads)

    def __contains__(self, head: object) -> bool:
        return head in self.heads

    def __getitem__(self, index: slice) -> HeadSet:
        return self._with(self.heads[index])

    def __str__(self) -> str:
        return " ".join(f"L{layer}H{head}" for layer, head in self.heads)

    def __repr__(self) -> str:
        tower = " of the vision tower" if self.part == VISION else ""
        return f"HeadSet of {len(self)} heads in {self.n_layers} layers x {self.n_heads}{tower}: {self}"


def check_part(heads: object, part: str, what: str) -> None:
    """HookError for a head set of another part of the model than is meant.

    Args:
        heads: a set, which knows its part; pairs do not.
        part: "decoder" or "vision".
        what: takes the heads, in words.
    """
    if isinstance(heads, HeadSet) and heads.part != part:
        raise HookError(
            f"{what} takes heads of the {_PARTS[part]}, given heads of the {_PARTS[heads.part]}: {heads!r}\n"
            f"  where these are meant, make the set with HeadSet(..., part={part!r})"
        )


_PARTS = {DECODER: "decoder", VISION: "vision tower"}


def as_head(head: object) -> Head:
    """A (layer, head) pair of numbers; HookError for anything else."""
    if not isinstance(head, (str, bytes)) and isinstance(head, Iterable):  # a pair, whatever holds it
        pair = list(head)
        with suppress(TypeError):
            if len(pair) == 2:
                return whole_number(pair[0]), whole_number(pair[1])
    raise HookError(f"a head is a (layer, head) pair of whole numbers, as in (3, 1), given {head!r}")


def whole_number(value: object) -> int:
    """A whole number, of numpy and torch too; TypeError for anything that would have to be rounded or read as one."""
    if isinstance(value, bool) or "bool" in str(getattr(value, "dtype", "")):
        raise TypeError(f"{value!r} is no number")
    return operator.index(value)  # type: ignore[arg-type]  # raises itself


def check_layer(layer: int, n_layers: int) -> int:
    """The layer, if the model has it.

    Raises:
        HookError: it has not; negative numbers do not count from the end.
    """
    try:
        layer = whole_number(layer)
    except TypeError as error:
        raise HookError(f"a layer is a whole number, as in 3, given {layer!r}") from error
    if not 0 <= layer < n_layers:
        raise HookError(f"layer {layer} is out of range: the model has layers 0 to {n_layers - 1}")
    return layer


def check_head(layer: int, head: int, n_layers: int, n_heads: int) -> Head:
    """The (layer, head) pair, if the model has it; HookError otherwise."""
    layer = check_layer(layer, n_layers)
    try:
        head = whole_number(head)
    except TypeError as error:
        raise HookError(f"a head is a whole number, as in 3, given {head!r}") from error
    if n_heads == 0:
        raise HookError(f"layer {layer} has no attention heads (linear attention or state space)")
    if not 0 <= head < n_heads:
        raise HookError(f"head {head} of layer {layer} is out of range: the layer has heads 0 to {n_heads - 1}")
    return layer, head


def ranked(
    values: Tensor, n: int, layers: Iterable[int] | None, descending: bool, what: str, part: str = DECODER
) -> HeadSet:
    """The n first heads by their numbers, best first.

    Args:
        values: Float[layer, head], NaN where there is none.
        n: how many.
        layers: among which; None for all.
        descending: whether large numbers come first.
        what: they have, in words, for the error.
        part: of the model, whose heads they are.

    Raises:
        ScoreError: there are fewer heads with a number than that.
    """
    n_layers, n_heads = values.shape
    allowed = set(range(n_layers) if layers is None else (check_layer(layer, n_layers) for layer in layers))
    having = [(layer, head) for layer, head in (~values.isnan()).nonzero().tolist() if layer in allowed]
    if not 0 < n <= len(having):
        raise ScoreError(f"{n} heads were asked for, expected 1 to {len(having)} (the heads with {what})")
    order = sorted(having, key=lambda head: float(values[head]), reverse=descending)
    return HeadSet(order[:n], n_layers, n_heads, part)
