"""The work of a comparison, item by item, here or on a worker of a cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from ..answers.contrast import token_text
from ..answers.items import Item
from ..answers.outcomes import ANSWER_METRICS, Outcomes, goal_of, goal_of_texts
from ..data import Sample
from ..data.problems import Bad
from ..errors import PromptError, ScoreError
from ..hooks.results import Report
from ..interventions.base import Intervention
from ..lens.travelling import TravellingLens
from ..prompts.prompt import Prompt
from ..runs.job import LeftOutError
from ..runs.texts import bytes_of
from ..warnings import NothingChangedWarning, counted
from .conditions import Condition
from .metrics import ComparedMetric
from .pictures import blank_images, shown

if TYPE_CHECKING:
    from ..lens import Lens

T = TypeVar("T")
N_NEW = 20
"""Tokens that may be said where an answer's own length says nothing."""


@dataclass(frozen=True, eq=False)
class ComparedItem:
    """One question.

    Attributes:
        item: it.
        partner: whose pictures it is shown where a condition swaps them.
    """

    item: Item
    partner: Sample | None = None


@dataclass(eq=False)
class MakeCompareWork:
    """Makes the work of a comparison, here or on a worker.

    Attributes:
        lens: the model, opened where the work is.
        conditions: by name.
        metric: what is measured.
        max_new_tokens: as in `compare`.
    """

    lens: TravellingLens
    conditions: Mapping[str, Condition]
    metric: ComparedMetric
    max_new_tokens: int | None

    def __call__(self) -> CompareWork:
        return CompareWork(self.lens.open(), self.conditions, self.metric, self.max_new_tokens)


@dataclass(frozen=True, eq=False)
class _Answered:
    """What was said under one condition, and in how many seconds the model said it."""

    value: float
    said: str
    reports: tuple[Report, ...]
    seconds: float


Asking = Callable[[Prompt, tuple[Intervention, ...]], _Answered]


@dataclass(eq=False)
class CompareWork:
    """The answers to one question after the other."""

    lens: Lens
    conditions: Mapping[str, Condition]
    metric: ComparedMetric
    max_new_tokens: int | None

    def prepare(self, compared: ComparedItem) -> ComparedItem:
        """The item with its prompt made, see `Item.ahead`."""
        return replace(compared, item=compared.item.ahead(self.lens))

    def __call__(self, compared: ComparedItem) -> dict[str, Tensor]:
        """What was said under each condition, what it is worth, what the interventions did, and how long it took.

        Raises:
            LeftOutError: the item cannot be used, and may be left out.
        """
        item = compared.item
        if isinstance(item.source, Bad):
            raise LeftOutError(f"{item.source.reason}\t{item.source.detail}", self._blank())
        if isinstance(item.source, Prompt) and item.source.n_rows != 1:
            raise ScoreError(
                f"{item.name} is one of a batch: compare takes prompts of one row, or samples\n"
                "  make a prompt of each, and give these one after the other"
            )
        with item.leaving_out((PromptError, ScoreError), "no answer", self._blank):
            rows = list(self._under_each(compared, item.prompt_on(self.lens)))
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def _under_each(self, compared: ComparedItem, prompt: Prompt) -> Iterator[dict[str, Tensor]]:
        prompts = {"own": prompt}
        asks = self._text(compared.item, prompt) if self.metric.of_text else self._first_token(compared.item, prompt)
        for condition in self.conditions.values():
            if condition.pictures not in prompts:
                prompts[condition.pictures] = self._with_pictures(condition.pictures, compared, prompt)
            asked = prompts[condition.pictures]
            with counted(NothingChangedWarning):
                answered = asks(asked, condition.on(asked))
            yield _tensors(answered)

    def _with_pictures(self, pictures: str, compared: ComparedItem, prompt: Prompt) -> Prompt:
        if pictures == "blank":
            return blank_images(self.lens, prompt)
        if compared.partner is None:
            raise ScoreError(f"{compared.item.name} is a prompt, and pictures are swapped among samples: give these")
        return shown(self.lens, prompt, list(compared.partner.images))

    def _text(self, item: Item, prompt: Prompt) -> Asking:
        """Generates, and grades the text."""
        sample = _as_sample(item, prompt)
        longest = self.max_new_tokens or self._longest(sample)

        def ask(shown: Prompt, interventions: tuple[Intervention, ...]) -> _Answered:
            done, seconds = timed(lambda: self.lens.generate(shown, interventions, max_new_tokens=longest))
            (said,) = done.text
            return _Answered(self.metric.grade(said, sample), said, done.reports, seconds)

        return ask

    def _longest(self, sample: Sample) -> int:
        """How many tokens may be said: for an exact match one more than the answer has, so that longer is wrong."""
        if self.metric.name != "exact_match":
            return N_NEW
        return 1 + len(self.lens.adapter.tokenizer(sample.answer, add_special_tokens=False)["input_ids"])

    def _first_token(self, item: Item, prompt: Prompt) -> Asking:
        """One forward, and a number of its last logits."""
        # decides which form of an answer is meant, and is the answer of the plain condition
        plain, plain_seconds = timed(lambda: self.lens.run(prompt, logits="last"))
        clean = plain.logits[0, -1]
        if isinstance(item.source, Sample):
            goal = goal_of_texts(self.lens, clean, item.source.answer, item.source.wrong)
        else:
            goal = goal_of(self.lens, clean, item.answer)

        def ask(shown: Prompt, interventions: tuple[Intervention, ...]) -> _Answered:
            run, seconds = plain, plain_seconds
            if shown is not prompt or interventions:
                run, seconds = timed(lambda: self.lens.run(shown, interventions, logits="last"))
            outcomes = Outcomes.of(run.logits[0], goal)
            said = token_text(self.lens, int(outcomes.said[0]))
            value = float(ANSWER_METRICS[self.metric.name].of(outcomes)[0])
            return _Answered(value, said, run.reports, seconds)

        return ask

    def _blank(self) -> dict[str, Tensor]:
        """What stands in the place of an item that was left out."""
        rows = [_tensors(_Answered(float("nan"), "", (), float("nan")))] * len(self.conditions)
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """What a call returns, and the seconds that it took."""
    start = time.perf_counter()
    return call(), time.perf_counter() - start


def _tensors(answered: _Answered) -> dict[str, Tensor]:
    moved, short = (sum(sum(getattr(each, name).values()) for each in answered.reports) for name in ("moved", "short"))
    numbers: dict[str, Any] = {"values": answered.value, "moved": moved, "short": short, "seconds": answered.seconds}
    found = {name: torch.tensor(number, dtype=torch.float64) for name, number in numbers.items()}
    edits = torch.tensor([sum(each.n_edits for each in answered.reports)]).squeeze()
    return {**found, "edits": edits, "said": bytes_of(answered.said)}


def _as_sample(item: Item, prompt: Prompt) -> Sample:
    """What a metric is given beside what was said.

    Raises:
        ScoreError: nobody said what is right.
    """
    if isinstance(item.source, Sample):
        return item.source
    right, wrong = item.answer or (None, None)
    if not isinstance(right, str):
        raise ScoreError(f"{item.name} has no right answer\n  give answers=[(right, wrong), ...] as texts, or samples")
    question = (prompt.texts or ("-",))[0]
    return Sample(item.name, question, right, wrong=wrong if isinstance(wrong, str) else None)
