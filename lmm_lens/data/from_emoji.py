"""The second bundled world's questions as samples: pictures of emoji, for the language model that learned to see."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .dataset import DataSet
from .drawn import drawn_questions
from .problems import Bad
from .sample import BoxLike, Sample

if TYPE_CHECKING:
    from ..bundled.emoji import Example


def emoji(n: int = 64, *, seed: int = 0, kinds: Sequence[str] | str | None = None, on_bad: str = "refuse") -> DataSet:
    """Questions on arrangements that emoji-llava was not trained on, kinds taking turns.

    The wrong answer is another of the same kind that begins with another word. The boxes are the cells of what the
    question is about, none for the background or where the right answer is that there is nothing. The questions are
    those of `lmm_lens.bundled.emoji.examples`.

    Args:
        n: how many.
        seed: of the scenes.
        kinds: of `lmm_lens.bundled.emoji.VISUAL_KINDS` and `SEMANTIC_KINDS`; by default the visual ones.
        on_bad: as in `DataSet`; no row here is bad.

    Raises:
        ScoreError: there is no such kind, or n is not positive.
    """
    from ..bundled.emoji import SEMANTIC_KINDS, VISUAL_KINDS, examples

    return drawn_questions("emoji", examples, _read, n, seed, kinds, VISUAL_KINDS, SEMANTIC_KINDS, on_bad)


def _read(numbered: tuple[int, Example]) -> list[Sample | Bad]:
    number, example = numbered
    draw = random.Random(f"{number} {example.question} {example.answer}")
    return [
        Sample(
            id=f"emoji/{example.kind}/{number}",
            question=example.question,
            answer=example.answer,
            images=(example.image,),
            wrong=draw.choice(_others(example)),
            category=example.kind,
            boxes=_boxes(example),
        )
    ]


def _others(example: Example) -> list[str]:
    """Answers that the question could have had and that begin with another word than its own."""
    from ..bundled.emoji.scenes import BACKGROUNDS, GROUP_OF, SEEN
    from ..bundled.worlds import NUMBER_WORDS

    answer, kind = example.answer, example.kind
    vocabulary: dict[str, Sequence[str]] = {
        "exist": ("yes", "no"),
        "count": NUMBER_WORDS[1:5],
        "background": tuple(BACKGROUNDS),
    }
    alike = [name for name in SEEN if not kind.startswith("which") or GROUP_OF[name] == kind.removeprefix("which_")]
    first = answer.replace(",", " ").split()[0]
    return [other for other in vocabulary.get(kind, alike) if other != first]


def _boxes(example: Example) -> tuple[BoxLike, ...]:
    """The cells that must be looked at, in reading order."""
    from ..bundled.emoji.scenes import cell_box

    things = example.scene.things
    if example.kind == "exist":
        things = tuple(thing for thing in things if thing.name in example.question.rstrip("?").split())
    elif example.kind == "at" or example.kind.startswith("which"):
        things = tuple(thing for thing in things if thing.name == example.answer)
    elif example.kind == "background":
        things = ()
    return tuple((float(x0), float(y0), float(x1), float(y1)) for x0, y0, x1, y1 in (cell_box(t.cell) for t in things))
