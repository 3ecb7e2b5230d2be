"""The same prompts with nothing to see, or with another's picture."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..data import Sample
from ..errors import PromptError, ScoreError
from ..prompts.prompt import Prompt

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..lens import Lens


def blank_images(lens: Lens, prompt: Prompt) -> Prompt:
    """The same prompt with every picture replaced by a plain one of its size and mean colour.

    Args:
        lens: whose processor makes the prompt anew.
        prompt: with pictures.

    Raises:
        PromptError: the prompt was made from tensors, or has no pictures, so there is none to replace.
    """
    from PIL import Image

    def blank(image: Image.Image) -> Image.Image:
        pixels = image.convert("RGB").resize((1, 1), Image.Resampling.BOX)
        return pixels.resize(image.size)

    if prompt.texts is not None and not any(prompt.images):
        raise PromptError("this prompt has no pictures, so that blank ones would change nothing\n  leave it out")
    return shown(lens, prompt, [[blank(image) for image in row] for row in prompt.images])


def swapped_images(lens: Lens, prompt: Prompt, seed: int = 0) -> Prompt:
    """The same prompt with every row's pictures taken from another row with as many, which are others.

    Args:
        lens: whose processor makes the prompt anew.
        prompt: with two batch rows or more.
        seed: of the exchange.

    Raises:
        PromptError: the prompt was made from tensors or has no pictures, or a row has no other to swap with.
    """
    if prompt.texts is not None and not any(prompt.images):
        raise PromptError("this prompt has no pictures, so there are none to swap\n  leave it out")
    groups: dict[int, list[int]] = {}
    for row, images in enumerate(prompt.images):
        if images:
            groups.setdefault(len(images), []).append(row)
    source = list(range(prompt.n_rows))
    draw = random.Random(seed)
    for n_images, rows in groups.items():
        if len(rows) < 2:
            raise PromptError(
                f"row {rows[0]} is the only one with {n_images} picture{'s' * (n_images > 1)}, "
                "so there is none to swap with\n"
                "  put more prompts into the batch"
            )
        order = draw.sample(rows, len(rows))
        shown_in = {row: tuple(_content(image) for image in prompt.images[row]) for row in order}
        alike = [[row for row in order if shown_in[row] == what] for what in dict.fromkeys(shown_in.values())]
        most = max(map(len, alike))
        if 2 * most > len(rows):
            raise PromptError(
                f"{most} of {len(rows)} rows show the same, so that some of them have no other pictures to swap with\n"
                "  put more prompts with other pictures into the batch"
            )
        # a cycle in random order moves every row; those that show the same stand together, and are all jumped over
        order = [row for rows_alike in alike for row in rows_alike]
        for here, there in zip(order, order[most:] + order[:most], strict=True):
            source[here] = there
    return shown(lens, prompt, [list(prompt.images[row]) for row in source])


def _content(image: Image) -> tuple[Any, ...]:
    """What tells a picture from others."""
    return image.size, image.convert("RGB").tobytes()


def shown(lens: Lens, prompt: Prompt, images: Sequence[Any]) -> Prompt:
    """The same prompt with other pictures, a list a batch row, or as many as the one row has.

    Raises:
        PromptError: the prompt was made from tensors, or has videos beside its pictures.
    """
    if prompt.texts is None:
        raise PromptError(
            "this prompt was made from tensors, so its pictures cannot be replaced\n"
            "  make it with lens.prompt(text, images=...), or process the other pictures yourself"
        )
    if any(prompt.videos):
        raise PromptError(
            "this prompt has videos, which are not replaced with its pictures\n"
            "  make it anew: lens.prompt(text, images=..., videos=...)"
        )
    rows = images if images and isinstance(images[0], list) else [list(images)]
    return lens.prompt(list(prompt.texts), images=rows, template=prompt.template)


def partners(sources: Iterable[Any]) -> Iterator[tuple[Any, Sample | None]]:
    """Each source with the sample whose pictures it is shown in their place, in order.

    That is the last sample before it with as many pictures that are others; the first ones wait for the next such. What
    is no sample has none.

    Raises:
        ScoreError: a sample has no other to swap with, or no pictures.
    """
    latest: dict[int, Sample] = {}  # by number of pictures
    other: dict[int, Sample] = {}  # the last before it with other pictures
    waiting: deque[tuple[Any, Sample | None]] = deque()
    for source in sources:
        sample = _sample_in(source)
        if sample is not None:
            n = len(sample.images)
            if not n:
                raise ScoreError(f"sample {sample.id!r} has no pictures to swap\n  leave pictures='swapped' out for it")
            if n in latest and _differ(latest[n], sample):
                other[n] = latest[n]
            latest[n] = sample
            waiting = deque(
                (early, sample if found is None and _can_swap(_sample_in(early), sample) else found)
                for early, found in waiting
            )
            waiting.append((source, other.get(n)))
        else:
            waiting.append((source, None))
        while waiting and (waiting[0][1] is not None or _sample_in(waiting[0][0]) is None):
            yield waiting.popleft()
    for source, _ in waiting:
        alone = _sample_in(source)
        if alone is not None:
            raise ScoreError(
                f"sample {alone.id!r} has {len(alone.images)} picture{'s' * (len(alone.images) > 1)}, and no other "
                "sample has as many that are others, so there is none to swap with\n  give more samples"
            )
    yield from waiting


def _sample_in(source: Any) -> Sample | None:
    found = getattr(source, "source", source)
    return found if isinstance(found, Sample) else None


def _differ(a: Sample, b: Sample) -> bool:
    return a.digests.get("picture") != b.digests.get("picture")


def _can_swap(a: Sample | None, b: Sample) -> bool:
    return a is not None and len(a.images) == len(b.images) and _differ(a, b)
