"""The second bundled world's questions as samples: pictures of emoji, for the language model that learned to see."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING

from ..errors import ScoreError, unknown
from .dataset import DataSet
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
    from ..bundled.emoji import SEMANTIC_KINDS, VISUAL_KINDS

    chosen = [kinds] if isinstance(kinds, str) else list(VISUAL_KINDS if kinds is None else kinds)
    for kind in chosen:
        if kind not in VISUAL_KINDS + SEMANTIC_KINDS:
            raise ScoreError(unknown("kind of question", kind, VISUAL_KINDS + SEMANTIC_KINDS))
    if n < 1 or not chosen:
        raise ScoreError(f"emoji needs at least one question of at least one kind, given n={n}, kinds={chosen}")
    about = {"kind": "emoji", "n": n, "seed": seed, "kinds": chosen}
    return DataSet(
        "emoji", _Examples(n, chosen, seed), _read, describe=partial(dict, about), on_bad=on_bad, numbered=True
    )


class _Examples:
    """(number, example) of each question, drawn when first asked for."""

    def __init__(self, n: int, kinds: Sequence[str], seed: int) -> None:
        self.n, self.kinds, self.seed = n, kinds, seed

    @cached_property
    def _drawn(self) -> list[Example]:
        from ..bundled.emoji import examples

        return examples(self.n, self.kinds, self.seed)

    def __iter__(self) -> Iterator[tuple[int, Example]]:
        return iter(enumerate(self._drawn, 1))

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[int, Example]:
        return index + 1, self._drawn[index]


def _read(numbered: tuple[int, Example]) -> list[Sample]:
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
