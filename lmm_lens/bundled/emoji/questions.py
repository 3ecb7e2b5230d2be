"""Question generators: (scene, rng) to a Question, or None where the scene allows no such question."""

import random
from collections.abc import Callable, Sequence

from lmm_lens.bundled.emoji.scenes import GROUP_OF, SEEN, Scene, place_name
from lmm_lens.bundled.worlds import GRID, NUMBER_WORDS, Question


def article(name: str) -> str:
    return "an" if name[0] in "aeiou" else "a"


def at(scene: Scene, rng: random.Random) -> Question:
    """What is in a cell; in three of twenty any cell, which is often empty."""
    taken = [thing.cell for thing in scene.things]
    cell = rng.choice(taken) if rng.random() < 0.85 else rng.randrange(GRID * GRID)
    where = place_name(cell)
    return Question("at", f"What is {'in' if where == 'center' else 'at'} the {where}?", scene.at(cell) or "nothing")


def exist(scene: Scene, rng: random.Random, names: Sequence[str] = SEEN) -> Question:
    """Whether a thing is there; yes and no equally often, absent ones out of `names`."""
    if rng.random() < 0.5:
        name, answer = rng.choice(scene.names), "yes"
    else:
        name, answer = rng.choice([name for name in names if name not in scene.names]), "no"
    return Question("exist", f"Is there {article(name)} {name}?", answer)


def count(scene: Scene, rng: random.Random) -> Question:
    return Question("count", "How many things are there?", NUMBER_WORDS[len(scene.things)])


def background(scene: Scene, rng: random.Random) -> Question:
    return Question("background", "What color is the background?", scene.background)


def everything(scene: Scene, rng: random.Random) -> Question:
    """Every name, in reading order."""
    return Question("list", "What is in the picture?", ", ".join(scene.names))


def name(scene: Scene, rng: random.Random) -> Question | None:
    """The same question of a picture with one thing."""
    return Question("name", "What is in the picture?", scene.names[0]) if len(scene.things) == 1 else None


def which(group: str, text: str) -> Callable[[Scene, random.Random], Question | None]:
    """A question that needs what the language model knows of the things; none of these was ever trained."""

    def ask(scene: Scene, rng: random.Random) -> Question | None:
        fitting = [name for name in scene.names if GROUP_OF[name] == group]
        if len(fitting) != 1 or len(scene.things) < 2:
            return None
        return Question(f"which_{group}", text, fitting[0])

    return ask


VISUAL: dict[str, Callable[[Scene, random.Random], Question | None]] = {
    "name": name,
    "background": background,
    "exist": exist,
    "count": count,
    "at": at,
    "list": everything,
}
SEMANTIC: dict[str, Callable[[Scene, random.Random], Question | None]] = {
    "which_animal": which("animal", "Which animal is in the picture?"),
    "which_food": which("food", "Which thing can you eat?"),
    "which_vehicle": which("vehicle", "Which vehicle is in the picture?"),
    "which_instrument": which("instrument", "Which thing makes music?"),
}
VISUAL_KINDS = tuple(VISUAL)
SEMANTIC_KINDS = tuple(SEMANTIC)
