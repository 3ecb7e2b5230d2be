"""The vision tower on a page: a scene of its own beside the decoder's."""

from __future__ import annotations

from ..errors import LensError, PromptError
from ..hooks.heads import VISION, HeadSet
from ..hooks.results import Run
from ..prompts.prompt import Prompt
from ..scoring import HeadScores
from .given import map_of_scores
from .scene import Scene, Side
from .tower_reading import TowerAsked


def check_tower(prompt: Prompt, of_run: bool) -> None:
    """Whether a page can show the tower beside what it shows.

    Raises:
        LensError: beside runs, which hold what the decoder attended to.
        PromptError: a batch.
    """
    if of_run:
        raise LensError("the vision tower is shown with a lens, not beside runs\n  view(prompt, lens, tower=True)")
    if prompt.n_rows != 1:
        raise PromptError(
            f"the vision tower is shown of one prompt, given a batch of {prompt.n_rows} rows\n"
            "  ask the row on its own: view(lens.prompt(text, images=...), lens, tower=True)"
        )


def tower_scene(asked: TowerAsked, run: Run, scores: HeadScores | None, mark: HeadSet | None, title: str) -> Scene:
    """The scene of the tower that a run has read; scores and marks are shown where they are of it."""
    attention, tokens, maps = asked.read(run)
    lens = asked.lens
    if scores is not None:
        maps.insert(0, map_of_scores(scores, lens, attention))
    size = f"{len(attention.layers)} layers × {len(attention.heads)} heads"
    return Scene(
        tokens,
        (Side("", attention, maps),),
        title,
        f"{type(lens.adapter.model).__name__}, vision tower · {size}",
        mark if mark is not None and mark.part == VISION else None,
        part=VISION,
    )
