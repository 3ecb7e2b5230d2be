"""Marking: what a model said as an answer, and the published scores of many (`scores`) with intervals (`tally`).

The two published rules for yes and no differ, and differ most where a model does not answer:

- MME (eval_tool/calculation.py of BradyFU/Awesome-Multimodal-Large-Language-Models, branch Evaluation): the text
  in lower case; "yes" or "no" alone, or else "yes" within its first four characters, or else "no" within them, or else
  neither. So "Not sure" and "Nothing" are "no", and "The answer is yes" is no answer.
- POPE (evaluate.py of AoiDragon/POPE): of the text up to its first full stop, without commas, split at spaces: "no" if
  "No", "not" or "no" is among the words, else "yes". So silence, "NO" and "I cannot see" are "yes".

White space around the answer is taken off first, which the published answer files do not have.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..errors import ScoreError, unknown
from .benchmark_scores import BinaryScores, MMEScores, PairScores, binary_scores, mme_scores, mmvp_scores
from .sample import plain
from .tally import bootstrap

__all__ = [
    "RULES",
    "BinaryScores",
    "MMEScores",
    "PairScores",
    "binary_scores",
    "bootstrap",
    "choice",
    "letter",
    "mme_scores",
    "mmvp_scores",
    "yes_no",
]

RULES = ("mme", "pope")


def yes_no(text: str, rule: str = "mme") -> str | None:
    """ "yes", "no", or None where the text is neither.

    >>> [yes_no(text) for text in ("Yes, there is.", "no", "The answer is yes.")]
    ['yes', 'no', None]
    >>> [yes_no(text, rule="pope") for text in ("There is no dog.", "There is a dog. No cat.", "")]
    ['no', 'yes', 'yes']

    Args:
        text: what the model said.
        rule: "mme", or "pope", which always finds one of the two.

    Raises:
        ScoreError: there is no such rule, or the text is none.
    """
    if not isinstance(text, str):
        raise ScoreError(f"expected what a model said, given {text!r}")
    if rule == "mme":
        start = text.strip().lower()[:4]
        return "yes" if "yes" in start else "no" if "no" in start else None
    if rule == "pope":
        words = text.strip().split(".")[0].replace(",", "").split(" ")
        return "no" if {"No", "not", "no"} & set(words) else "yes"
    raise ScoreError(unknown("rule of marking", rule, RULES))


def choice(text: str, options: Sequence[str]) -> int | None:
    """The number of the option that an answer chooses, or None where it chooses none or several; our own rule.

    In this order: the one letter in parentheses, "(B)"; a letter that the text starts with, alone or before . ) : or a
    comma; the letter after "answer is" or "option"; the words of exactly one option at the start of the text.

    >>> said = ("B", "(a) a cat", "The answer is B.", "a dog on a sofa", "A or B")
    >>> [choice(text, ["a cat", "a dog"]) for text in said]
    [1, 0, 1, 1, None]
    """
    said = plain(text)
    last = chr(ord("a") + len(options) - 1)
    bracketed = set(re.findall(rf"\(([a-{last}])\)", said))
    if bracketed:
        return ord(bracketed.pop()) - ord("a") if len(bracketed) == 1 else None
    begins = re.match(rf"([a-{last}])(?=[.):,]|$)", said)
    named = re.search(rf"(?:answer is|answer:|option)\s+([a-{last}])(?!\w)", said)
    found = begins or named
    if found is not None:
        return ord(found[1]) - ord("a")
    chosen = [n for n, words in enumerate(options) if re.match(rf"{re.escape(plain(words))}(?!\w)", said)]
    return chosen[0] if len(chosen) == 1 else None


def letter(text: str, question: str = "") -> str | None:
    """The option "a" or "b" that an answer to MMVP chooses, or None where it chooses none or both.

    MMVP itself asks GPT-4 whether an answer is right; this rule is our own. In this order: the one letter in
    parentheses, "(a)"; a letter that the text starts with, alone or before . ) : or a comma; the words of one option at
    the start of the text, where the question is given.

    >>> [letter(text) for text in ("(a) Open", "B.", "A butterfly", "(a) or (b)")]
    ['a', 'b', None, None]
    >>> letter("Closed, they are.", "Are they open? (a) Open (b) Closed")
    'b'
    """
    said = plain(text)
    bracketed = set(re.findall(r"\(([ab])\)", said))
    if bracketed:
        return bracketed.pop() if len(bracketed) == 1 else None
    if begins := re.match(r"([ab])(?=[.):,]|$)", said):
        return begins[1]
    options = re.search(r"\(a\)\s*(.+?)\s*\(b\)\s*(.+?)\s*$", plain(question))
    chosen = [
        name
        for name, words in zip("ab", options.groups() if options else ("", ""), strict=True)
        if words and re.match(rf"{re.escape(words)}(?!\w)", said)
    ]
    return chosen[0] if len(chosen) == 1 else None
