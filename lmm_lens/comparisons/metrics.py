"""What a comparison measures of an answer: of the generated text, or of the logits of the first answer token."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

from ..answers.outcomes import ANSWER_METRICS
from ..data import Sample, grading
from ..data.sample import plain
from ..data.vqa_score import vqa_accuracy
from ..errors import ScoreError, unknown
from ..runs.checkpoint import digest_of_text
from .matching import exact_match

OfText = Callable[[str, Sample], Any]


def _equal(said: str, sample: Sample) -> bool:
    return plain(said) == plain(sample.answer)


def _contains(said: str, sample: Sample) -> bool:
    return re.search(rf"(?<!\w){re.escape(plain(sample.answer))}(?!\w)", plain(said)) is not None


def _yes_no(rule: str) -> OfText:
    def grade(said: str, sample: Sample) -> bool:
        if plain(sample.answer) not in ("yes", "no"):
            raise ScoreError(f"the right answer of {sample.id} is {sample.answer!r}, neither yes nor no")
        return grading.yes_no(said, rule) == plain(sample.answer)

    return grade


def _letter(said: str, sample: Sample) -> bool:
    right = grading.letter(sample.answer, sample.question)
    if right is None:
        raise ScoreError(f"the right answer of {sample.id} is {sample.answer!r}, none of its options (a) and (b)")
    return grading.letter(said, sample.question) == right


def _choice(said: str, sample: Sample) -> bool:
    if not sample.options:
        raise ScoreError(f"{sample.id} has no options to choose from")
    return grading.choice(said, sample.options) == grading.choice(sample.answer, sample.options)


def _vqa(said: str, sample: Sample) -> float:
    return vqa_accuracy(said, sample.given)


TEXT_METRICS: dict[str, tuple[str, OfText]] = {
    "exact_match": ("whether exactly the answer was said, up to case and spaces, 0 or 1", _equal),
    "contains": ("whether the answer is among what was said, as whole words, 0 or 1", _contains),
    "yes_no": ("whether yes or no was said rightly, by MME's rule, 0 or 1", _yes_no("mme")),
    "yes_no_pope": ("whether yes or no was said rightly, by POPE's rule, 0 or 1", _yes_no("pope")),
    "choice": ("whether the right one of the options was said, by letter or in words, 0 or 1", _choice),
    "vqa": ("VQA's accuracy: agreement with the answers of people, 0 to 1", _vqa),
    "letter": ("whether the right option (a) or (b) was said, 0 or 1", _letter),
}
"""Metrics of generated text: what each means, and how it is found."""


@dataclass(frozen=True)
class ComparedMetric:
    """What is measured.

    Attributes:
        name: it.
        meaning: in words.
        of_text: finds it of generated text; None for a number of the first answer token, from one forward.
    """

    name: str
    meaning: str
    of_text: OfText | None

    @classmethod
    def of(cls, metric: Any) -> ComparedMetric:
        """A metric by its name, `lmm_lens.exact_match`, or a function of what was said and the sample.

        Raises:
            ScoreError: none of these.
        """
        if metric is exact_match:
            metric = "exact_match"
        if callable(metric):
            name = getattr(metric, "__name__", type(metric).__name__)
            return cls(f"{name} {_digest(metric)}".strip(), (inspect.getdoc(metric) or name).splitlines()[0], metric)
        if metric in TEXT_METRICS:
            return cls(metric, *TEXT_METRICS[metric])
        if metric in ANSWER_METRICS:
            return cls(metric, ANSWER_METRICS[metric].meaning, None)
        raise ScoreError(
            f"{unknown('metric', metric, (*TEXT_METRICS, *ANSWER_METRICS))}\n"
            "  or a function of the text said and the Sample"
        )

    def grade(self, said: str, sample: Sample) -> float:
        """The number of one answer.

        Raises:
            ScoreError: a user's function gives no finite number.
        """
        assert self.of_text is not None
        found = self.of_text(said, sample)
        number = float(found) if isinstance(found, Real) or hasattr(found, "item") else math.nan
        if not math.isfinite(number):
            raise ScoreError(
                f"the metric {self.name.split()[0]} of {sample.id} gave {found!r}, expected a finite number, or True "
                "or False"
            )
        return number


def _digest(function: Any) -> str:
    """Tells a user's functions of one name apart, where their source can be had."""
    try:
        return digest_of_text(inspect.getsource(function))
    except (OSError, TypeError):
        return ""
