"""CHAIR: which objects a caption names that are not in the picture (Rohrbach et al., EMNLP 2018, arXiv:1809.02156)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import ScoreError
from .published import PathLike
from .sample import Sample
from .text_files import file_of

IRREGULAR = {"people": "person", "children": "child", "mice": "mouse", "geese": "goose"}
ENDINGS = (("", ""), ("ies", "y"), ("ves", "f"), ("ves", "fe"), ("es", ""), ("s", ""), ("men", "man"))


@dataclass(frozen=True, eq=False)
class Chair:
    """What captions name.

    Attributes:
        n_named: objects that each caption names, with repetitions.
        n_hallucinated: those of them that are not in its picture.
        n_found: different objects of the picture that it names.
        n_there: different objects of the picture.
    """

    n_named: Float[Tensor, " caption"]
    n_hallucinated: Float[Tensor, " caption"]
    n_found: Float[Tensor, " caption"]
    n_there: Float[Tensor, " caption"]

    @property
    def chair_i(self) -> float:
        """The share of named objects that are not there; 0 where nothing is named."""
        return float(self.n_hallucinated.sum() / self.n_named.sum().clamp_min(1))

    @property
    def chair_s(self) -> float:
        """The share of captions that name at least one object that is not there."""
        return float((self.n_hallucinated > 0).double().mean())

    @property
    def recall(self) -> float:
        """The share of the objects there that are named: a caption that names nothing hallucinates nothing."""
        return float(self.n_found.sum() / self.n_there.sum().clamp_min(1))

    def __repr__(self) -> str:
        return (
            f"CHAIR of {len(self.n_named)} captions: i {self.chair_i:.3f}, s {self.chair_s:.3f}, "
            f"recall {self.recall:.3f}"
        )


def chair(said: Sequence[str], samples: Iterable[Sample], synonyms: Mapping[str, str]) -> Chair:
    """Compare captions with what is in their pictures: the annotated objects, and those that people's captions name.

    The published code tags words with nltk and has a list of double words of its own; here names of several words come
    first, and plurals are told by their endings, so that single captions may count otherwise.

    Args:
        said: the captions.
        samples: of `coco_captions`, one each.
        synonyms: of `read_synonyms`.

    Raises:
        ScoreError: not one sample a caption, or none.
    """
    listed = list(samples)
    if len(listed) != len(said) or not listed:
        raise ScoreError(f"expected one sample a caption, given {len(said)} captions and {len(listed)} samples")
    rows = []
    for caption, sample in zip(said, listed, strict=True):
        there = {synonyms.get(name, name) for name in sample.answer.split(", ")}
        there |= {name for wrote in sample.given for name in named_objects(wrote, synonyms)}
        named = named_objects(caption, synonyms)
        wrong = sum(name not in there for name in named)
        rows.append([len(named), wrong, len(there.intersection(named)), len(there)])
    return Chair(*torch.tensor(rows, dtype=torch.float64).unbind(1))


def read_synonyms(path: PathLike) -> dict[str, str]:
    """CHAIR's synonyms.txt: a line an object, its name first, then what else it is called, commas between.

    Raises:
        ScoreError: no such file, or it names nothing.
    """
    file = file_of(path, "CHAIR synonyms")
    known: dict[str, str] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        words = [word.strip().lower() for word in line.split(",") if word.strip()]
        known.update(dict.fromkeys(words, words[0]) if words else {})
    if not known:
        raise ScoreError(f"{file.name!r} names no objects")
    return known


def named_objects(caption: str, synonyms: Mapping[str, str]) -> list[str]:
    """The objects that a caption names, each as often as it does; longer names first, plurals as their singular.

    >>> named_objects("Two puppies and a hot dog", {"dog": "dog", "puppy": "dog", "hot dog": "hot dog"})
    ['dog', 'hot dog']
    """
    parts = {part for name in synonyms for part in name.split()}
    words = [_singular(word, parts) for word in re.findall(r"[a-z]+(?:-[a-z]+)*", caption.lower())]
    longest = max((name.count(" ") + 1 for name in synonyms), default=1)
    found, place = [], 0
    while place < len(words):
        lengths = range(min(longest, len(words) - place), 0, -1)
        names = (" ".join(words[place : place + n]) for n in lengths)
        name = next((name for name in names if name in synonyms), None)
        if name is not None:
            found.append(synonyms[name])
        place += 1 if name is None else name.count(" ") + 1
    return found


def _singular(word: str, known: set[str]) -> str:
    for end, start in ENDINGS:
        if word.endswith(end) and word.removesuffix(end) + start in known:
            return word.removesuffix(end) + start
    return IRREGULAR.get(word, word)
