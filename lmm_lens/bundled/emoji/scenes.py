"""Scenes: one to four emoji on a 3 x 3 grid of cells, before a background of one colour.

A picture is 96 x 96 pixels, a cell 32 x 32, a patch of the vision tower 16 x 16, so a cell is four patches and a
picture 36 visual tokens. Cells count 0..8 and patches 0..35 row by row from the top left.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from lmm_lens.bundled import worlds
from lmm_lens.bundled.worlds import GRID, PATCHES_PER_SIDE, CellBox, check_scene, check_wanted, is_held_out

GROUPS = {
    "animal": "dog 🐶|cat 🐱|horse 🐴|cow 🐮|pig 🐷|mouse 🐭|rabbit 🐰|bear 🐻|lion 🦁|tiger 🐯|"
    "monkey 🐵|elephant 🐘|fox 🦊|wolf 🐺|sheep 🐑|chicken 🐔|duck 🦆|penguin 🐧|owl 🦉|"
    "turtle 🐢|snake 🐍|frog 🐸|fish 🐟|whale 🐳|shark 🦈|crab 🦀|snail 🐌|butterfly 🦋|"
    "bee 🐝|spider 🕷",
    "food": "apple 🍎|banana 🍌|orange 🍊|lemon 🍋|cherry 🍒|strawberry 🍓|pear 🍐|pineapple 🍍|"
    "tomato 🍅|carrot 🥕|corn 🌽|mushroom 🍄|bread 🍞|cheese 🧀|egg 🥚|pizza 🍕|cake 🍰|"
    "cookie 🍪",
    "vehicle": "car 🚗|bus 🚌|truck 🚚|bicycle 🚲|train 🚂|rocket 🚀|boat ⛵|tractor 🚜|helicopter 🚁",
    "instrument": "guitar 🎸|violin 🎻|trumpet 🎺|drum 🥁|piano 🎹",
    "clothing": "hat 🎩|shoe 👞|shirt 👕|dress 👗",
    "tool": "hammer 🔨|knife 🔪|spoon 🥄|scissors ✂",
    "thing": "rose 🌹|tree 🌳|house 🏠|tent ⛺|chair 🪑|key 🔑|clock ⏰|phone 📱|camera 📷|"
    "book 📕|umbrella ☂|crown 👑|balloon 🎈|gift 🎁|bell 🔔|football 🏈|moon 🌙|"
    "star ⭐|fire 🔥|ghost 👻|robot 🤖|heart ❤|bomb 💣|candle 🕯|magnet 🧲|anchor ⚓|"
    "sword 🗡|ladder 🪜|cactus 🌵",
}
EMOJI = {entry.split()[0]: entry.split()[1] for entries in GROUPS.values() for entry in entries.split("|")}
GROUP_OF = {entry.split()[0]: group for group, entries in GROUPS.items() for entry in entries.split("|")}
NAMES = tuple(EMOJI)
# the language model was never shown a picture with one of these: only the tower met them, in the alignment
UNSEEN = ("owl", "wolf", "banana", "carrot", "train", "violin", "shirt", "hammer", "clock", "moon", "robot", "sheep")
SEEN = tuple(name for name in NAMES if name not in UNSEEN)

BACKGROUNDS = {
    "white": (245, 245, 245),
    "gray": (150, 150, 150),
    "black": (25, 25, 25),
    "red": (205, 60, 55),
    "green": (85, 165, 85),
    "blue": (75, 120, 205),
    "yellow": (238, 218, 105),
    "pink": (245, 175, 200),
    "purple": (140, 90, 175),
    "brown": (125, 85, 55),
}

CELL = 32  # pixels a side
SIZE = GRID * CELL  # 96 pixels
PATCH = SIZE // PATCHES_PER_SIDE  # 16 pixels a side
MOST_DRAWS = 1000  # one in eight is held out, so only where there is next to nothing to draw


@dataclass(frozen=True, order=True)
class Thing:
    """One emoji in one cell, by its name."""

    cell: int
    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Scene:
    """The things of one picture, in reading order, at most one a cell, and the colour behind them."""

    things: tuple[Thing, ...]
    background: str = "white"

    def __post_init__(self) -> None:
        check_scene([thing.cell for thing in self.things])
        unknown = [thing.name for thing in self.things if thing.name not in EMOJI]
        if unknown:
            raise ValueError(f"no emoji of this world is called {', '.join(unknown)}; emoji.NAMES lists them")
        if self.background not in BACKGROUNDS:
            raise ValueError(f"backgrounds are {', '.join(BACKGROUNDS)}; got {self.background!r}")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(thing.name for thing in self.things)

    def at(self, cell: int) -> str | None:
        """The name of what is in a cell, None for nothing."""
        return {thing.cell: thing.name for thing in self.things}.get(cell)

    def swapped(self, thing: Thing, name: str) -> "Scene":
        """The same scene with another thing in one cell."""
        new = Thing(thing.cell, name)
        return Scene(tuple(new if other == thing else other for other in self.things), self.background)


def place_name(cell: int) -> str:
    """The words for a cell: 0 is "top left", 4 is "center", 8 is "bottom right"."""
    return "center" if cell == 4 else worlds.place_name(cell)


def cell_box(cell: int) -> CellBox:
    """Pixel box (x0, y0, x1, y1) of a cell, the far edges exclusive."""
    return worlds.cell_box(cell, CELL)


def boxes(scene: Scene) -> dict[Thing, CellBox]:
    """The pixel box of every thing: the cell it was drawn in."""
    return {thing: cell_box(thing.cell) for thing in scene.things}


def held_out(scene: Scene) -> bool:
    """Whether this arrangement is kept from training: one in eight, by a checksum of its description."""
    return is_held_out(";".join(f"{thing.cell} {thing}" for thing in scene.things))


def random_scene(
    rng: random.Random, things: tuple[int, int] = (1, 4), split: str = "held out", names: Sequence[str] = SEEN
) -> Scene:
    """A random scene with things[0] to things[1] different things, from one side of the train / held-out split.

    Raises:
        ValueError: too few names, or none of their arrangements is on that side.
    """
    check_wanted(things, split)
    if len(set(names)) < things[1]:
        raise ValueError(f"{things[1]} different things need as many names; got {', '.join(names) or 'none'}")
    for _ in range(MOST_DRAWS):
        n = rng.randint(*things)
        cells, chosen = sorted(rng.sample(range(GRID * GRID), n)), rng.sample(list(names), n)
        scene = Scene(tuple(map(Thing, cells, chosen)), rng.choice(list(BACKGROUNDS)))
        if held_out(scene) == (split == "held out"):
            return scene
    raise ValueError(
        f"no arrangement of {', '.join(names)} was found on the {split!r} side in {MOST_DRAWS} draws: give more names"
    )
