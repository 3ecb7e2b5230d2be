"""The bundled world's questions as samples, so that everything that takes a data set runs offline."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .dataset import DataSet
from .drawn import drawn_questions
from .problems import Bad
from .sample import BoxLike, Sample

if TYPE_CHECKING:
    from ..bundled.shapes import Example, Scene, Thing


def shapes(n: int = 64, *, seed: int = 0, kinds: Sequence[str] | str | None = None, on_bad: str = "refuse") -> DataSet:
    """Questions on scenes that shapes-llava was not trained on, kinds taking turns.

    The wrong answer is another of the same kind that begins with another word, so the first token tells them apart.
    The boxes are the cells of what the question is about; the questions are those of
    `lmm_lens.bundled.shapes.examples`.

    Args:
        n: how many.
        seed: of the scenes.
        kinds: of `lmm_lens.bundled.shapes.VISUAL_KINDS` and `TEXT_KINDS`; by default the visual ones. "exist" is yes
            or no.
        on_bad: as in `DataSet`; no row here is bad.

    Raises:
        ScoreError: there is no such kind, or n is not positive.
    """
    from ..bundled.shapes import TEXT_KINDS, VISUAL_KINDS, examples

    return drawn_questions("shapes", examples, _read, n, seed, kinds, VISUAL_KINDS, TEXT_KINDS, on_bad)


def _read(numbered: tuple[int, Example]) -> list[Sample | Bad]:
    number, example = numbered
    draw = random.Random(f"{number} {example.question} {example.answer}")
    return [
        Sample(
            id=f"shapes/{example.kind}/{number}",
            question=example.question,
            answer=example.answer,
            images=() if example.image is None else (example.image,),
            wrong=draw.choice(_others(example)),
            category=example.kind,
            boxes=() if example.scene is None else _boxes(example, example.scene),
        )
    ]


def _others(example: Example) -> list[str]:
    """Answers that the question could have had and that begin with another word than its own."""
    from ..bundled.shapes import scenes
    from ..bundled.shapes.questions import DIGITS, OPPOSITES, REPEATABLE
    from ..bundled.worlds import GRID, NUMBER_WORDS, place_name

    numbers = DIGITS if example.answer in DIGITS else NUMBER_WORDS
    things = [f"{color} {shape}" for color in scenes.COLORS for shape in scenes.SHAPES]
    vocabulary: dict[str, Sequence[str]] = {
        "color": scenes.COLORS,
        "shape": scenes.SHAPES,
        "where": [place_name(cell) for cell in range(GRID**2)],
        "count": DIGITS[:6],
        "exist": ("yes", "no"),
        "at": [*things, "nothing"],
        "list": [", ".join([thing, *example.answer.split(", ")[1:]]) for thing in things],
        "arith": numbers,
        "next": numbers,
        "opposite": tuple(OPPOSITES),
        "repeat": REPEATABLE,
    }
    first = example.answer.split()[0]
    return [other for other in vocabulary[example.kind] if other.split()[0] != first]


def _boxes(example: Example, scene: Scene) -> tuple[BoxLike, ...]:
    """The cells that must be looked at, in reading order; none where the right answer is that there is nothing."""
    from ..bundled.shapes.questions import plural
    from ..bundled.shapes.scenes import cell_box
    from ..bundled.worlds import GRID, place_name

    words, asked = example.question.rstrip("?").split(), example.question
    about: dict[str, Callable[[Thing], bool]] = {
        "color": lambda thing: thing.shape in words,
        "shape": lambda thing: thing.color in words,
        "where": lambda thing: place_name(thing.cell) == example.answer,
        "count": lambda thing: (
            asked.startswith("how many objects") or bool({thing.color, plural(thing.shape)} & {*words})
        ),
        "exist": lambda thing: str(thing) in asked,
        "list": lambda thing: True,
    }
    cells: list[Any] = [thing.cell for thing in scene.things if example.kind in about and about[example.kind](thing)]
    if example.kind == "at":
        cells = [cell for cell in range(GRID**2) if place_name(cell) in asked]
    return tuple((float(x0), float(y0), float(x1), float(y1)) for x0, y0, x1, y1 in map(cell_box, cells))
