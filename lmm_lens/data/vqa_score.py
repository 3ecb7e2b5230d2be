"""The accuracy of open answers that several people gave: VQA's (Antol et al., ICCV 2015, arXiv:1505.00468)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..errors import ScoreError

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
ARTICLES = frozenset(("a", "an", "the"))
WRITTEN = {word: str(number) for number, word in enumerate(NUMBERS)} | {"none": "0"}


def vqa_form(answer: str) -> str:
    """An answer as it is compared: no case, articles or punctuation, numbers up to ten in digits.

    >>> [vqa_form(text) for text in ("The Dogs!", "Two.", "1,000 t-shirts", "it's 2.5")]
    ['dogs', '2', '1000 t shirts', 'its 2.5']

    The published evaluation restores apostrophes ("dont" to "don't") from a list; here they are left out on both sides,
    which compares alike.
    """
    said = answer.replace("\n", " ").replace("\t", " ").strip().lower()
    said = re.sub(r"(?<=\d),(?=\d)", "", said)
    said = re.sub(r"(?<!\d)\.|\.(?!\d)|['\u2019]", "", said)
    said = re.sub(r"[;/\[\]\"{}()=+\\_><@`,?!-]", " ", said)
    words = (WRITTEN.get(word, word) for word in said.split())
    return " ".join(word for word in words if word not in ARTICLES)


def vqa_accuracy(said: str, given: Sequence[str]) -> float:
    """How well an answer agrees with people's: the mean, over leaving one of them out, of min(1, agreeing others / 3).

    Args:
        said: the model's answer.
        given: people's, usually ten.

    Returns:
        In [0, 1].

    Raises:
        ScoreError: nobody's answer is given.
    """
    if not given:
        raise ScoreError("the VQA accuracy of an answer needs those of people: samples whose `given` holds them")
    own, people = vqa_form(said), [vqa_form(each) for each in given]
    agree = [each == own for each in people]
    if len(people) == 1:
        return float(agree[0])
    return sum(min(1.0, (sum(agree) - each) / 3) for each in agree) / len(people)
