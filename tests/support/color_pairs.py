"""Pairs of pictures of the bundled world that differ in one colour, as batches."""

from functools import cache
from types import SimpleNamespace

from lmm_lens.bundled import shapes


def batch(lens, examples):
    return lens.prompt([e.question for e in examples], images=[e.image for e in examples])


@cache
def color_batch(lens):
    """Eight pairs that differ in one object's colour, and where this object is."""
    examples = shapes.color_pairs(8, seed=0)
    clean, corrupt = (batch(lens, [pair[i] for pair in examples]) for i in (0, 1))
    changed = [next(iter(set(a.scene.things) - set(b.scene.things))) for a, b in examples]
    boxes = [shapes.boxes(a.scene)[thing] for (a, _), thing in zip(examples, changed, strict=True)]
    objects = [corrupt.positions_in_box(box, row=row) for row, box in enumerate(boxes)]
    others = corrupt.mask("image").clone()
    for row, positions in enumerate(objects):
        others[row, list(positions)] = False
    answers = [(a.answer, b.answer) for a, b in examples]
    return SimpleNamespace(
        examples=examples, answers=answers, clean=clean, corrupt=corrupt, objects=objects, others=others
    )
