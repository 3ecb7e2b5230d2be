"""One question of a data set: what is asked, what is right, what it is set against, and where to look."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from ..errors import ScoreError
from ..prompts.prompt import Prompt, check_prompt

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..lens import Lens

    Picture = os.PathLike[str] | Image

BoxLike = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Sample:
    """A question with its answer.

    Attributes:
        id: unique within its data set and readable, as "pope/adversarial/17".
        question: what is asked, ready for `Lens.prompt`.
        answer: the right answer, as the model should say it.
        images: pictures, or their paths, which are opened only when the prompt is made.
        wrong: the answer that the right one is set against, for logit differences.
        group: what counts only together: MME's picture, MMVP's pair.
        category: subtask or setting, for tables.
        boxes: (x0, y0, x1, y1) each, in pixels of the first picture, the far edges exclusive.
        options: the texts to choose from, of which "A" or "a" is the first.
        given: what annotators answered, one each, for metrics that count them.

    Raises:
        ScoreError: the question or the answer is empty, both answers are the same, or a box is none.
    """

    id: str
    question: str
    answer: str
    images: tuple[Picture, ...] = ()
    wrong: str | None = None
    group: str | None = None
    category: str | None = None
    boxes: tuple[BoxLike, ...] = ()
    options: tuple[str, ...] = ()
    given: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("images", "options", "given"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "boxes", tuple(as_box(box) for box in self.boxes))
        for name in ("id", "question", "answer"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise ScoreError(f"a sample's {name} is a text and not empty, given {value!r}")
        if self.wrong is not None and plain(self.wrong) == plain(self.answer):
            raise ScoreError(f"the wrong answer is the right one, {self.answer!r}: nothing to tell apart")
        if self.boxes and not self.images:
            raise ScoreError(f"sample {self.id!r} has boxes but no picture that they could lie in")

    def __getstate__(self) -> dict[str, Any]:
        """On its way to another process, which may have started in another folder: pictures by whole paths."""
        whole = (Path(each).absolute() if isinstance(each, (str, os.PathLike)) else each for each in self.images)
        return {**self.__dict__, "images": tuple(whole)}

    @cached_property
    def key(self) -> str:
        """16 hex digits that tell samples apart, the same on every machine: of all fields, see `digests`."""
        return _digest([self.id, self.digests])

    @cached_property
    def digests(self) -> dict[str, str]:
        """16 hex digits of each thing that a sample is: its question, answers, pictures, boxes and labels.

        A picture counts by every byte of its file, or by its pixels; one whose file is gone is told by that.
        """
        pictures = {"picture": _digest([_identity(picture) for picture in self.images])} if self.images else {}
        boxes = {"boxes": _digest(self.boxes)} if self.boxes else {}
        said = [
            self.answer,
            self.wrong,
            *([list(self.options), list(self.given)] if self.options or self.given else []),
        ]
        answers, labels = _digest(said), _digest([self.group, self.category])
        return {"question": _digest(self.question), "answers": answers, **pictures, **boxes, "labels": labels}

    def prompt(self, lens: Lens) -> Prompt:
        """The prompt that asks it.

        Raises:
            PromptError: a picture cannot be opened, or the question holds other image slots than it has pictures.
        """
        return lens.prompt(self.question, images=list(self.images) or None)

    def __repr__(self) -> str:
        against = f", not {self.wrong!r}" if self.wrong is not None else ""
        pictures = f", {len(self.images)} picture{'s' * (len(self.images) != 1)}" if self.images else ""
        return f"Sample {self.id}: {self.question!r} {self.answer!r}{against}{pictures}"


def prompt_of(lens: Lens, source: Prompt | Sample) -> Prompt:
    """The prompt of a sample, or the one that was given.

    Raises:
        PromptError: it is neither, or the sample's cannot be made.
    """
    if isinstance(source, Sample):
        return source.prompt(lens)
    check_prompt(source)
    return source


def plain(text: str) -> str:
    """A text without what does not matter to an answer: case and spaces."""
    return " ".join(text.casefold().split())


def as_box(given: Sequence[Any]) -> BoxLike:
    """Four numbers as a box.

    Raises:
        ScoreError: they are not x0 < x1 and y0 < y1.
    """
    try:
        x0, y0, x1, y1 = (float(number) for number in given)
    except (TypeError, ValueError):
        raise ScoreError(f"a box is four numbers (x0, y0, x1, y1) in pixels, given {given!r}") from None
    if not (x0 < x1 and y0 < y1 and max(abs(x0), abs(x1), abs(y0), abs(y1)) < float("inf")):
        raise ScoreError(f"a box is (x0, y0, x1, y1) in pixels with x0 < x1 and y0 < y1, given {(x0, y0, x1, y1)}")
    return x0, y0, x1, y1


def _digest(value: Any) -> str:
    described = json.dumps(value, ensure_ascii=False)
    return hashlib.sha256(described.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _identity(picture: Picture) -> list[Any]:
    if not isinstance(picture, (str, os.PathLike)):
        try:
            return [picture.mode, *picture.size, xxhash.xxh3_128_hexdigest(picture.tobytes())]
        except OSError as error:  # of a file that is cut short, which the prompt will say better
            return ["unreadable", str(error)]
    try:
        found = Path(picture).stat()
        return [Path(picture).name, _bytes_of(Path(picture), found.st_ino, found.st_size, found.st_ctime_ns)]
    except OSError as error:
        return ["gone", str(error.strerror)]


@lru_cache(maxsize=64)  # questions about one picture follow each other
def _bytes_of(path: Path, inode: int, n_bytes: int, changed: int) -> str:
    found = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            found.update(piece)
    return found.hexdigest()
