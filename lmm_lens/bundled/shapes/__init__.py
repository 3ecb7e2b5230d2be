"""shapes-llava: a small, real, trained LlavaForConditionalGeneration, with the world it was trained on.

    model, processor = load()                       # or load("plain")
    for example in examples(7, seed=3):             # one question of each visual kind
        print(example.question, example.answer)
    clean, corrupt = color_pairs(1, seed=0)[0]      # two pictures that differ in one colour

The model card, README.md beside this file, says what it can do, what emerged and what was induced.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmm_lens.bundled.loading import without_progress_bar
from lmm_lens.bundled.shapes.questions import TEXT, TEXT_KINDS, VISUAL, VISUAL_KINDS
from lmm_lens.bundled.shapes.render import blank, picture
from lmm_lens.bundled.shapes.scenes import COLORS, Scene, Thing, boxes, random_scene, sink_patches
from lmm_lens.bundled.worlds import Question

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "CONDITIONS",
    "TEXT_KINDS",
    "VARIANTS",
    "VISUAL_KINDS",
    "Example",
    "Scene",
    "Thing",
    "blank",
    "boxes",
    "checkpoint",
    "color_pairs",
    "examples",
    "load",
    "picture",
    "sink_patches",
]

VARIANTS = ("sinks", "plain")
CONDITIONS = ("clean", "blank", "wrong", "faint", "noisy")
FAINT_CONTRAST = 0.25  # training has .6 to 1
STRONG_NOISE = 0.2  # training has 0 to .08


@dataclass(frozen=True)
class Example:
    """A question, its answer and the picture shown with it (None for the text-only kinds).

    `scene` is what the question is about; under the condition "blank" or "wrong" the picture shows another.
    """

    image: "Image | None"
    question: str
    answer: str
    kind: str
    scene: Scene | None


def checkpoint(variant: str = "sinks") -> Path:
    """The folder of a checkpoint, as `from_pretrained` takes it."""
    if variant not in VARIANTS:
        raise ValueError(f"shapes-llava has the variants {', '.join(map(repr, VARIANTS))}; got {variant!r}")
    folder = Path(__file__).parent / "checkpoints" / variant
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"the {variant!r} checkpoint of shapes-llava is not installed\n"
            f"  expected model.safetensors in {folder}\n"
            "  reinstall lmm-lens, or make it again from a checkout of the repository: make model"
        )
    return folder


def load(variant: str = "sinks", dtype: Any = None) -> tuple[Any, Any]:
    """The model in eval mode and its processor, from the files beside this one; dtype None is fp32."""
    folder = checkpoint(variant)
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    with without_progress_bar():
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype or torch.float32)
        model.name_or_path = "lmm-lens/shapes-llava" + ("" if variant == "sinks" else f"-{variant}")
        return model.eval(), AutoProcessor.from_pretrained(folder)


def examples(
    n: int,
    kinds: Sequence[str] = VISUAL_KINDS,
    seed: int = 0,
    condition: str = "clean",
    things: tuple[int, int] = (1, 5),
) -> list[Example]:
    """n examples on scenes kept from training; kinds take turns.

    The same seed gives the same questions under every condition, so conditions can be compared in pairs:
    "clean"; "blank", a picture of nothing; "wrong", the picture of another random scene; "faint", contrast
    .25; "noisy", noise .2. `things` bounds how many there are in a scene (the model was trained on 1 to 5).
    """
    unknown = [kind for kind in kinds if kind not in VISUAL and kind not in TEXT]
    if unknown or not kinds:
        raise ValueError(f"kinds are {', '.join(VISUAL_KINDS + TEXT_KINDS)}; got {list(kinds)}")
    if condition not in CONDITIONS:
        raise ValueError(f"condition is one of {', '.join(CONDITIONS)}; got {condition!r}")
    made = []
    for i in range(n):
        kind = kinds[i % len(kinds)]
        rng = random.Random(f"{seed} {i} {kind}")
        if kind in TEXT:
            question = TEXT[kind](rng)
            made.append(Example(None, question.text, question.answer, kind, None))
            continue
        scene, question = _scene_with(VISUAL[kind], rng, things)
        image = _shown(scene, rng.randrange(2**32), condition, rng, things)
        made.append(Example(image, question.text, question.answer, kind, scene))
    return made


def _scene_with(
    ask: Callable[[Scene, random.Random], Question | None], rng: random.Random, things: tuple[int, int]
) -> tuple[Scene, Question]:
    """A random scene that allows the question."""
    while True:
        scene = random_scene(rng, things)
        question = ask(scene, rng)
        if question:
            return scene, question


def _shown(scene: Scene, seed: int, condition: str, rng: random.Random, things: tuple[int, int]) -> "Image":
    if condition == "blank":
        return blank(seed)
    if condition == "wrong":
        return picture(random_scene(rng, things), seed)
    if condition == "faint":
        return picture(scene, seed, contrast=FAINT_CONTRAST)
    if condition == "noisy":
        return picture(scene, seed, noise=STRONG_NOISE)
    return picture(scene, seed)


def color_pairs(n: int, seed: int = 0) -> list[tuple[Example, Example]]:
    """n pairs (clean, corrupt) for activation patching.

    The two pictures are drawn with the same randomness and differ in one object's colour alone; the
    question is the same, "what color is the ...?", and the answers differ. No other thing has the
    object's shape or either of its colours.
    """
    pairs = []
    for i in range(n):
        rng = random.Random(f"{seed} {i} pair")
        thing, other_color = None, None
        while thing is None or other_color is None:
            scene = random_scene(rng, (2, 4))
            thing = _lonely(scene, rng)
            free = [color for color in COLORS if all(other.color != color for other in scene.things)]
            other_color = rng.choice(free) if free else None
        drawn_with = rng.randrange(2**32)
        question = f"what color is the {thing.shape}?"
        changed = scene.recolored(thing, other_color)
        clean = Example(picture(scene, drawn_with), question, thing.color, "color", scene)
        corrupt = Example(picture(changed, drawn_with), question, other_color, "color", changed)
        pairs.append((clean, corrupt))
    return pairs


def _lonely(scene: Scene, rng: random.Random) -> Thing | None:
    """A random thing whose shape and colour no other thing has."""
    found = [thing for thing in scene.things if all(other is thing or _differs(other, thing) for other in scene.things)]
    return rng.choice(found) if found else None


def _differs(one: Thing, other: Thing) -> bool:
    return one.shape != other.shape and one.color != other.color
