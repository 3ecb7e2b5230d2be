"""The work of information flow, prompt row by prompt row, here or on a worker of a cluster."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..answers.items import Item, Items, key_of
from ..data import Sample
from ..data.problems import Bad
from ..errors import PromptError, ScoreError
from ..lens.travelling import TravellingLens
from ..prompts.prompt import Prompt
from ..replay.batches import Batches
from ..replay.forwards import Forwards
from ..replay.ways import Way
from ..runs import RunFolder
from ..runs.checkpoint import digest_of_text, fingerprint
from ..runs.job import LeftOutError
from ..runs.texts import bytes_of
from ..warnings import NothingChangedWarning, counted
from .cuts import FlowOn, FlowTask, RowFlow
from .forced import Answer, answer_tokens
from .routes import Route
from .stored import OTHERWISE

if TYPE_CHECKING:
    from ..lens import Lens

N_WAYS = len(Way) - 1
"""Numbers from 0 on; the last is that of nothing computed."""


@dataclass(frozen=True, eq=False)
class FlowItem:
    """One prompt row.

    Attributes:
        item: it.
        number: of its prompt among all, by which random keys are drawn.
        answer: as given; None for a sample's own, or the model's.
    """

    item: Item
    number: int
    answer: Answer | None = None

    @property
    def key(self) -> str:
        """What tells it from others."""
        key = key_of(self.item)
        return key if self.answer is None else f"{key} answers:{digest_of_text(fingerprint(self.answer))}"


class FlowItems:
    """Prompts and samples, one a row, with their answers.

    Args:
        samples, answers: as in `information_flow`.
    """

    def __init__(self, samples: Prompt | Sample | Iterable[Prompt | Sample], answers: Sequence[Answer] | None) -> None:
        self.items = Items([samples] if isinstance(samples, Sample) else samples, None, "")
        self.answers, self.n_rows = answers, 0

    def __length_hint__(self) -> int:
        try:
            return len(self.items)
        except TypeError:
            return 0

    def __iter__(self) -> Iterator[FlowItem]:
        number = -1
        for item in self.items:
            number += item.row == 0
            name = f"prompt {self.n_rows}" if isinstance(item.source, Prompt) else item.name
            yield FlowItem(replace(item, name=name), number, self._answer(item))
            self.n_rows += 1

    def _answer(self, item: Item) -> Answer | None:
        if self.answers is None:
            return None
        if isinstance(item.source, Sample):
            raise ScoreError(
                f"sample {item.name} brings its own answer, but answers were given\n  give prompts with them"
            )
        if self.n_rows >= len(self.answers):
            raise ScoreError(f"{len(self.answers)} answers were given, but there are more prompt rows: give one a row")
        return self.answers[self.n_rows]

    def check_all_used(self) -> None:
        """ScoreError for more answers than prompt rows."""
        if self.answers is not None and len(self.answers) != self.n_rows:
            raise ScoreError(f"{len(self.answers)} answers were given for {self.n_rows} prompt rows: give one a row")


@dataclass(eq=False)
class MakeFlowWork:
    """Makes the work, here or on a worker of a cluster.

    Attributes:
        lens: the model, opened where the work is.
        routes, centres, window, n_random, seed, first_only: as in `FlowTask`.
        rows_per_pass: how large batches may be.
        is_halved: whether memory ran out before, and batches were made smaller.
        folder: where a smaller batch is noted; does not travel.
    """

    lens: TravellingLens
    routes: tuple[Route, ...]
    centres: tuple[int, ...]
    window: int
    n_random: int
    seed: int
    first_only: bool
    rows_per_pass: int | None
    is_halved: bool = False
    folder: RunFolder | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "folder": None}

    def __call__(self) -> FlowWork:
        lens = self.lens.open()
        task = FlowTask(lens, self.routes, self.centres, self.window, self.n_random, self.seed, self.first_only)
        on_change = (lambda rows: None) if self.folder is None else self._note
        return FlowWork(lens, task, Batches(self.rows_per_pass, lens.device, on_change), self.is_halved)

    def _note(self, rows: int) -> None:
        assert self.folder is not None
        self.folder.note(rows_per_pass=rows)


@dataclass(eq=False)
class FlowWork:
    """What cuts do to one prompt row after the other."""

    lens: Lens
    task: FlowTask
    batches: Batches
    was_halved: bool = False
    forwards: Forwards = field(init=False)
    _at_hand: tuple[Prompt | Sample, FlowOn] | None = None  # the rows of a batch follow one another

    def __post_init__(self) -> None:
        self.forwards = Forwards(self.lens, self.batches)
        self._rows_at_first = self.batches.rows

    def prepare(self, asked: FlowItem) -> FlowItem:
        """The item with its prompt made, see `Item.ahead`."""
        return replace(asked, item=asked.item.ahead(self.lens))

    def __call__(self, asked: FlowItem) -> dict[str, Tensor]:
        """What every cut does to the answer.

        Raises:
            LeftOutError: the model answers otherwise; or the item cannot be used, and may be left out.
        """
        item, source = asked.item, asked.item.source
        if isinstance(source, Bad):
            raise LeftOutError(f"{source.reason}\t{source.detail}", self._blank())
        if self._at_hand is None or self._at_hand[0] is not source or self._at_hand[1].index != asked.number:
            with item.leaving_out(PromptError, "no prompt", self._blank):
                prompt = item.prompt_on(self.lens)
            self._at_hand = source, FlowOn(self.task, prompt, asked.number)
        cuts = self._at_hand[1]
        answer = source.answer if isinstance(source, Sample) else asked.answer
        with item.leaving_out(ScoreError, "no answer token", self._blank):
            tokens = answer_tokens(self.lens, self.forwards.clean(cuts.prompt)[item.row], answer)
        with counted(NothingChangedWarning):  # a route that was cut already: its change of 0 says so
            found = cuts.of_row(self.forwards, item.row, tokens)
        if isinstance(found, str):
            raise LeftOutError(f"{OTHERWISE}\t{found}", self._blank())
        reason = self.forwards.reason if Way.EACH in found.ways else ""
        return _tensors(found, reason, self.was_halved or self.batches.rows < self._rows_at_first)

    def _blank(self) -> dict[str, Tensor]:
        """What stands in the place of a row that was left out."""
        nothing = torch.full((len(self.task.routes), len(self.task.centres)), torch.nan, dtype=torch.float64)
        none = torch.zeros(len(nothing), dtype=torch.long)
        return _tensors(RowFlow(nothing, nothing, float("nan"), none, none, 0, ()), "", False)


def _tensors(found: RowFlow, reason: str, is_halved: bool) -> dict[str, Tensor]:
    return {
        "per_prompt": found.change,
        "control_per_prompt": found.control,
        "base": torch.tensor(found.base, dtype=torch.float64),
        "n_keys": found.n_keys,
        "n_random_keys": found.n_random,
        "n_tokens": torch.tensor(found.n_tokens),
        "ways": torch.bincount(torch.tensor(found.ways, dtype=torch.long), minlength=N_WAYS),
        "is_halved": torch.tensor(is_halved),
        "reason": bytes_of(reason),
    }
