"""Question generators: VISUAL ones need a scene to be answered, TEXT ones need none.

A visual generator takes (scene, rng) and returns a Question, or None where the scene allows no such question
(nothing in it is unique by shape, say). A text generator takes (rng).
"""

import random
from collections import Counter
from collections.abc import Callable

from lmm_lens.bundled.shapes.scenes import COLORS, SHAPES, Scene, Thing
from lmm_lens.bundled.worlds import GRID, NUMBER_WORDS, Question, place_name

DIGITS = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
OPPOSITE_PAIRS = (
    ("left", "right"),
    ("top", "bottom"),
    ("yes", "no"),
    ("up", "down"),
    ("big", "small"),
    ("hot", "cold"),
    ("day", "night"),
    ("open", "closed"),
)
OPPOSITES = dict(OPPOSITE_PAIRS) | {second: first for first, second in OPPOSITE_PAIRS}
REPEATABLE = COLORS + SHAPES + NUMBER_WORDS + DIGITS + tuple(OPPOSITES)


def plural(shape: str) -> str:
    return "crosses" if shape == "cross" else shape + "s"


def _the_only_one(scene: Scene, rng: random.Random, key: Callable[[Thing], object]) -> Thing | None:
    """A random thing that no other thing of the scene shares `key` with."""
    count = Counter(key(thing) for thing in scene.things)
    unique = [thing for thing in scene.things if count[key(thing)] == 1]
    return rng.choice(unique) if unique else None


def color(scene: Scene, rng: random.Random) -> Question | None:
    thing = _the_only_one(scene, rng, lambda thing: thing.shape)
    if thing is None:
        return None
    return Question("color", f"what color is the {thing.shape}?", thing.color)


def shape(scene: Scene, rng: random.Random) -> Question | None:
    thing = _the_only_one(scene, rng, lambda thing: thing.color)
    if thing is None:
        return None
    return Question("shape", f"what shape is the {thing.color} object?", thing.shape)


def where(scene: Scene, rng: random.Random) -> Question | None:
    """Names the thing by its shape alone half of the time where that is enough."""
    by_shape = rng.random() < 0.5
    thing = _the_only_one(scene, rng, lambda thing: thing.shape) if by_shape else None
    name = thing and thing.shape
    if thing is None:
        thing = _the_only_one(scene, rng, str)
        name = str(thing)
    if thing is None:
        return None
    return Question("where", f"where is the {name}?", place_name(thing.cell))


def count(scene: Scene, rng: random.Random) -> Question:
    """Of all objects, of a shape, or of a colour; the one asked for is present three times in four."""
    what, present = rng.random(), rng.random() < 0.75
    if what < 0.25:
        return Question("count", "how many objects are there?", str(len(scene.things)))
    if what < 0.65:
        wanted = rng.choice(scene.things).shape if present else rng.choice(SHAPES)
        number = sum(thing.shape == wanted for thing in scene.things)
        return Question("count", f"how many {plural(wanted)} are there?", str(number))
    wanted = rng.choice(scene.things).color if present else rng.choice(COLORS)
    number = sum(thing.color == wanted for thing in scene.things)
    return Question("count", f"how many {wanted} objects are there?", str(number))


def exist(scene: Scene, rng: random.Random) -> Question:
    """Yes half of the time; a no mostly names a colour and a shape that are there, but not together."""
    if rng.random() < 0.5:
        return Question("exist", f"is there a {rng.choice(scene.things)}?", "yes")
    present = {str(thing) for thing in scene.things}
    while True:
        how = rng.random()
        its_color = rng.choice(scene.things).color if how < 0.66 else rng.choice(COLORS)
        its_shape = rng.choice(scene.things).shape if how > 0.33 else rng.choice(SHAPES)
        name = f"{its_color} {its_shape}"
        if name not in present:
            return Question("exist", f"is there a {name}?", "no")


def at(scene: Scene, rng: random.Random) -> Question:
    occupied = rng.random() < 0.75
    cell = rng.choice(scene.things).cell if occupied else rng.randrange(GRID * GRID)
    found = [str(thing) for thing in scene.things if thing.cell == cell]
    return Question("at", f"what is at the {place_name(cell)}?", found[0] if found else "nothing")


def list_all(scene: Scene, rng: random.Random) -> Question:
    return Question("list", "describe the image.", ", ".join(str(thing) for thing in scene.things))


def arith(rng: random.Random) -> Question:
    """Sums and differences within 0..9, in words or in digits."""
    numbers = NUMBER_WORDS if rng.random() < 0.5 else DIGITS
    first = rng.randint(0, 9)
    if rng.random() < 0.6:
        second = rng.randint(0, 9 - first)
        text = f"what is {numbers[first]} plus {numbers[second]}?"
        return Question("arith", text, numbers[first + second])
    second = rng.randint(0, first)
    return Question("arith", f"what is {numbers[first]} minus {numbers[second]}?", numbers[first - second])


def following(rng: random.Random) -> Question:
    numbers = NUMBER_WORDS if rng.random() < 0.5 else DIGITS
    first = rng.randint(0, 8)
    if rng.random() < 0.5:
        return Question("next", f"what comes after {numbers[first]}?", numbers[first + 1])
    return Question("next", f"what comes before {numbers[first + 1]}?", numbers[first])


def opposite(rng: random.Random) -> Question:
    word = rng.choice(tuple(OPPOSITES))
    return Question("opposite", f"what is the opposite of {word}?", OPPOSITES[word])


def repeat(rng: random.Random) -> Question:
    word = rng.choice(REPEATABLE)
    return Question("repeat", f"repeat the word {word}", word)


VISUAL: dict[str, Callable[[Scene, random.Random], Question | None]] = {
    "color": color,
    "shape": shape,
    "where": where,
    "count": count,
    "exist": exist,
    "at": at,
    "list": list_all,
}
TEXT: dict[str, Callable[[random.Random], Question]] = {
    "arith": arith,
    "next": following,
    "opposite": opposite,
    "repeat": repeat,
}
VISUAL_KINDS = tuple(VISUAL)
TEXT_KINDS = tuple(TEXT)
