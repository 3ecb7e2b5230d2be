"""Ask a model whether its adapter's grid is right: paint each patch, and look which visual token changes.

A wrong grid gives wrong figures and wrong scores by region without any error. The check paints the middle of each
token's box into a grey picture, one picture a token, and compares what enters the language model there and without the
paint. Vision transformers mix their patches, so the layers of the vision tower give back their input for the check:
then a token hears of its own pixels alone. That this is so is itself checked, by dots that no adapter has placed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..backends.entering import entered, tower_off
from ..errors import LensError
from ..prompts.spans import Box, Span

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..lens import Lens

T = TypeVar("T")
GREY, WHITE = (90, 90, 90), (255, 255, 255)
BATCH = 16  # pictures a pass
DOTS = 5  # a side of the lattice of dots
NOTHING = 0.02  # of the largest change of a crop: what counts as none; resampling spreads a little paint
ALIKE = 0.5  # of the largest change of one picture: what counts too; a mark well inside a patch gives others far less
STRADDLED = 4  # tokens that a dot on a corner reaches
SMALLEST = 6  # pixels of a patch, across and down: less, and resampling spreads the paint over its neighbours


@dataclass(frozen=True)
class Misplaced:
    """A visual token that does not see the pixels that the adapter says.

    Attributes:
        position: of the token in the sequence.
        box: where the adapter says that it lies, in pixels of the picture.
        seen_by: the tokens of its crop that change when the middle of the box is painted, ascending: the one that
            changes most, and all that change at least half as much. Empty where none does, and where the box lies
            outside the picture, yet the token sees it.
    """

    position: int
    box: Box
    seen_by: tuple[int, ...]


def misplaced(
    lens: Lens, size: tuple[int, int] = (90, 60), question: str = "what is this?", sample: int | None = None
) -> tuple[Misplaced, ...]:
    """The visual tokens of a picture that see other pixels than the adapter says; empty where the grid is right.

    Ask for a square, a wide and a tall picture: processors crop and pad. Each crop of a picture is checked by itself.
    One picture alone is asked about, so the order of several is not checked, nor are videos. An error of less than a
    quarter of a patch is not seen, nor what is said of a patch that is three quarters padding or more.

    Args:
        lens: with backend "native" and a processor. The model is as before afterwards.
        size: width and height of the picture in pixels. Patches must be 6 pixels across and down, or larger.
        question: the text beside the picture.
        sample: how many tokens of each crop are painted, drawn with a fixed seed; None for all of them, which at the
            size of released models are thousands of pictures.

    Raises:
        LensError: the adapter knows no grid, there is no processor, another backend, or an intervention is applied; the
            patches are too small; the tower cannot be switched off, or mixes its patches all the same; sample is less
            than 1.
    """
    _check(lens, size)
    if sample is not None and sample < 1:
        raise LensError(f"sample is how many tokens of each crop are painted, at least 1, given {sample}")
    blank = _blank(size)
    spans = lens.prompt(question, images=blank).spans[0]
    crops = [span for span in spans if span.kind == "image"]
    boxes = [(crop, position, crop.box(position)) for crop in crops for position in crop.positions]
    _check_size(boxes, size)
    marks = [(crop, position, box, _mark(box, size)) for crop, position, box in boxes]
    marked = [mark for mark in marks if mark[3] is not None]
    if not marked:
        raise LensError(
            f"by the adapter of family {lens.adapter.family!r} no visual token sees any of a picture of {size}\n"
            f"  its boxes lie outside, as {tuple(boxes[0][2]) if boxes else 'there are none'}"
        )
    if sample is not None:
        marked = [mark for crop in crops for mark in _drawn([mark for mark in marked if mark[0] is crop], sample)]
    dots = _dots(size)
    paint = [(0, 0, *size), *dots, *(mark[3] for mark in marked)]
    change = _changes(lens, question, blank, [_painted(blank, *where) for where in paint if where], spans)
    whole, of_dots, of_marks = change[0], change[1 : 1 + len(dots)], change[1 + len(dots) :]
    for crop in crops:
        _check_local(lens, of_dots[:, list(crop.positions)])
    found = [_seen(crop, at, box, own, of_marks) for (crop, at, box, _), own in zip(marked, of_marks, strict=True)]
    found += [_outside(crop, at, box, whole) for crop, at, box in boxes if not box.overlaps(Box(-1, -1, *size))]
    return tuple(sorted((each for each in found if each is not None), key=lambda each: each.position))


def _drawn(marks: Sequence[T], n: int) -> list[T]:
    """So many of them, or all."""
    return random.Random(0).sample(marks, min(n, len(marks)))


def _check(lens: Lens, size: tuple[int, int]) -> None:
    adapter = lens.adapter
    if not adapter.has_grid:
        raise LensError(f"the adapter of family {adapter.family!r} knows no grid (has_grid), so there is none to check")
    if lens.processor is None:
        raise LensError("the check makes pictures of its own, so it needs a lens with its processor")
    if lens.backend != "native":
        raise LensError(f'the check needs backend="native", this lens has {lens.backend!r}; the grid is the same')
    if lens.applied:
        raise LensError("the check asks the model as it is; call it outside of `with lens.apply(...)`")
    if len(size) != 2 or min(size) < 1:
        raise LensError(f"size is (width, height) in pixels, each at least 1, given {tuple(size)}")


def _check_size(boxes: Sequence[tuple[Span, int, Box]], size: tuple[int, int]) -> None:
    smallest = min((min(box.x1 - box.x0, box.y1 - box.y0) for *_, box in boxes), default=SMALLEST)
    if smallest < SMALLEST:
        factor = ceil(SMALLEST / max(smallest, 0.1))
        raise LensError(
            f"a patch of a picture of {tuple(size)} is {smallest:.3g} pixels, too small to be painted alone\n"
            f"  expected {SMALLEST} or more: give a larger picture, as size={(factor * size[0], factor * size[1])}"
        )


# ---------------------------------------------------------------------- pictures

Pixels = tuple[int, int, int, int]


def _blank(size: tuple[int, int]) -> Image:
    from PIL import Image

    return Image.new("RGB", size, GREY)


def _painted(blank: Image, x0: int, y0: int, x1: int, y1: int) -> Image:
    picture = blank.copy()
    picture.paste(WHITE, (x0, y0, x1, y1))
    return picture


def _mark(box: Box, size: tuple[int, int]) -> Pixels | None:
    """The middle of what a box shows of the picture; None where that is too little."""
    middles = []
    for start, end, edge in ((box.x0, box.x1, size[0]), (box.y0, box.y1, size[1])):
        low, high = max(start, 0), min(end, edge)
        if high - low < max((end - start) / 4, SMALLEST / 2):
            return None
        quarter = (high - low) / 4
        middles.append((round(low + quarter), max(round(high - quarter), round(low + quarter) + 1)))
    (x0, x1), (y0, y1) = middles
    return x0, y0, x1, y1


def _dots(size: tuple[int, int]) -> list[Pixels]:
    """Small dots all over the picture, wherever the adapter believes the patches to be."""
    edge = max(1, SMALLEST // 3)
    steps = [(2 * i + 1) / (2 * DOTS) for i in range(DOTS)]
    corners = [(int(size[0] * across), int(size[1] * down)) for down in steps for across in steps]
    return [(x, y, x + edge, y + edge) for x, y in corners]


# ---------------------------------------------------------------------- what they change


def _changes(
    lens: Lens, question: str, blank: Image, pictures: Sequence[Image], spans: tuple[Span, ...]
) -> Float[Tensor, "picture position"]:
    """How far each picture moves what enters the language model at each position, as a norm; the tower switched off."""
    parts = []
    with tower_off(lens.adapter) as switched_off:
        for start in range(0, len(pictures), BATCH - 1):
            shown = [blank, *pictures[start : start + BATCH - 1]]
            prompt = lens.prompt([question] * len(shown), images=shown)
            if any(row != spans for row in prompt.spans):
                raise LensError("pictures of one size have different layouts in one batch, so they cannot be compared")
            entering = entered(lens.adapter, prompt.inputs).float().cpu()
            parts.append((entering[1:] - entering[:1]).norm(dim=-1))
    if not switched_off:
        raise LensError(
            f"no layers were found in the vision tower of {type(lens.model).__name__}, so it cannot be switched off\n"
            "  expected a module list whose members give back tensors of the shape that they take"
        )
    change = torch.cat(parts)
    if bool(change.isnan().any()):
        raise LensError(f"{type(lens.model).__name__} gives NaN with its vision tower switched off; try float32")
    return change


# ---------------------------------------------------------------------- what that says


def _check_local(lens: Lens, change: Float[Tensor, "dot token"]) -> None:
    """LensError if dots move many tokens of a crop, or all of its few: the tower mixes patches by other means."""
    reached = change > NOTHING * change.max()
    counts = reached.sum(1)
    few = 1 < change.shape[1] <= STRADDLED
    all_at_once = few and bool((counts[counts > 0] == change.shape[1]).all()) and bool(counts.any())
    if all_at_once or int(counts.max()) > STRADDLED:
        raise LensError(
            f"a dot in a picture moves {int(counts.max())} of {change.shape[1]} visual tokens of "
            f"{type(lens.model).__name__}, with its tower's layers switched off\n"
            f"  expected {STRADDLED} at most; patches are mixed elsewhere too, so the check cannot tell whose pixels"
            " a token sees"
        )


def _seen(crop: Span, position: int, box: Box, own: Tensor, all_marks: Tensor) -> Misplaced | None:
    """What a token's mark says of it."""
    positions = list(crop.positions)
    change, largest = own[positions], float(all_marks[:, positions].max())
    if float(change.max()) <= NOTHING * largest:
        return Misplaced(position, box, ())
    moved = (change >= ALIKE * change.max()).tolist()
    seen_by = tuple(at for at, is_moved in zip(positions, moved, strict=True) if is_moved)
    return None if seen_by == (position,) else Misplaced(position, box, seen_by)


def _outside(crop: Span, position: int, box: Box, whole: Tensor) -> Misplaced | None:
    """A token of which the adapter says that it sees padding: painting the whole picture must not move it."""
    largest = float(whole[list(crop.positions)].max())
    return Misplaced(position, box, ()) if float(whole[position]) > NOTHING * largest else None
