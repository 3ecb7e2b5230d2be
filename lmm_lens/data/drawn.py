"""Questions of the bundled worlds, drawn from a seed, as data sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any

from ..errors import ScoreError, unknown
from .dataset import DataSet
from .problems import Bad
from .sample import Sample

Examples = Callable[[int, list[str], int], Sequence[Any]]
"""Draws questions: how many, of which kinds, from which seed."""


class _Drawn:
    """(number, example) of each question, drawn when first asked for; a picture is 7 kB."""

    def __init__(self, examples: Examples, n: int, kinds: list[str], seed: int) -> None:
        self.examples, self.n, self.kinds, self.seed = examples, n, kinds, seed

    @cached_property
    def _drawn(self) -> Sequence[Any]:
        return self.examples(self.n, self.kinds, self.seed)

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        return iter(enumerate(self._drawn, 1))

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index + 1, self._drawn[index]


def drawn_questions(
    name: str,
    examples: Examples,
    read: Callable[[tuple[int, Any]], list[Sample | Bad]],
    n: int,
    seed: int,
    kinds: Sequence[str] | str | None,
    usual: Sequence[str],
    others: Sequence[str],
    on_bad: str,
) -> DataSet:
    """Questions of a world, kinds taking turns.

    Args:
        name: of the world.
        examples: draws its questions.
        read: makes a sample of one.
        n: how many.
        seed: of the scenes.
        kinds: which; None for the usual ones.
        usual, others: the kinds that there are.
        on_bad: as in `DataSet`.

    Raises:
        ScoreError: there is no such kind, or n is not positive.
    """
    chosen = [kinds] if isinstance(kinds, str) else list(usual if kinds is None else kinds)
    for kind in chosen:
        if kind not in (*usual, *others):
            raise ScoreError(unknown("kind of question", kind, (*usual, *others)))
    if n < 1 or not chosen:
        raise ScoreError(f"{name} needs at least one question of at least one kind, given n={n}, kinds={chosen}")
    about = {"kind": name, "n": n, "seed": seed, "kinds": chosen}
    units = _Drawn(examples, n, chosen, seed)
    return DataSet(name, units, read, describe=partial(dict, about), on_bad=on_bad, numbered=True)
