"""The work of a sweep over heads, item by item, here or on a worker of a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..answers.contrast import AnswerLike
from ..answers.outcomes import Goal, Outcomes, answers_at, goal_of, goal_of_texts
from ..answers.own import OwnAnswer
from ..backends.identity import differences, in_words
from ..data import DataSet, Sample
from ..data.problems import Bad
from ..errors import LensError, PromptError, ScoreError
from ..prompts.prompt import Prompt
from ..replay.batches import Batches
from ..replay.forwards import Forwards
from ..replay.ways import HALVED, Way
from ..runs import RunFolder
from ..runs.checkpoint import digest, digest_of_text, fingerprint
from ..runs.job import LeftOutError
from .ablations import Ablation, AblationOn

if TYPE_CHECKING:
    from ..lens import Lens

Answers = Sequence[tuple[AnswerLike, AnswerLike | None]]


@dataclass(frozen=True, eq=False)
class Item:
    """One row of a sweep.

    Attributes:
        name: for people.
        source: a sample, a prompt, or a row of a data set that gives no sample.
        row: which row of the prompt.
        answer: (right, wrong) as given; None for a sample's own, or the model's.
        may_be_left_out: whether the sweep goes on without it where it cannot be used.
        prompt: what the source was made into ahead of time.
    """

    name: str
    source: Prompt | Sample | Bad
    row: int = 0
    answer: tuple[AnswerLike, AnswerLike | None] | None = None
    may_be_left_out: bool = False
    prompt: Prompt | None = None


def key_of(item: Item) -> str:
    """What tells an item from others: its name and digests of what the model is given and of the answers."""
    source = item.source
    if isinstance(source, Bad):
        parts = {"row": digest_of_text(str(source))}
    else:
        parts = dict(source.digests) if isinstance(source, Sample) else {"prompt": digest(source)}
    if item.answer is not None:
        parts["answers"] = digest_of_text(fingerprint(item.answer))
    return "\t".join((item.name, " ".join(f"{name}:{value}" for name, value in parts.items())))


class Items:
    """Prompts and samples as items, one a row; has a length where the prompts have one.

    Args:
        prompts, answers: as in `head_effects`.
        contrast: the metric that needs a wrong answer, if it does.
    """

    def __init__(self, prompts: Any, answers: Answers | None, contrast: str) -> None:
        self.prompts, self.answers, self.contrast, self.n_used = prompts, answers, contrast, 0
        if isinstance(prompts, Prompt):
            self.prompts = [prompts]
        elif not isinstance(prompts, Iterable) or isinstance(prompts, (str, bytes, Mapping)):
            raise ScoreError(f"expected prompts made by lens.prompt(...) or samples, given {type(prompts).__name__}")
        if answers is not None and isinstance(self.prompts, (list, tuple)) and len(self) < len(answers):
            self.n_used = len(self)
            self.check_all_used()

    def __len__(self) -> int:
        counted = isinstance(self.prompts, (list, tuple))
        return sum(getattr(each, "n_rows", 1) for each in self.prompts) if counted else len(self.prompts)

    def __iter__(self) -> Iterator[Item]:
        skips = isinstance(self.prompts, DataSet) and self.prompts.on_bad == "skip"
        for number, source in enumerate(self.prompts.rows() if isinstance(self.prompts, DataSet) else self.prompts):
            if isinstance(source, Bad):
                yield Item(source.where, source, may_be_left_out=True)
                continue
            if isinstance(source, Sample):
                yield replace(self._item(source.id, source, 0), may_be_left_out=skips)
                continue
            if not isinstance(source, Prompt):
                raise ScoreError(f"expected prompts made by lens.prompt(...) or samples, given {source!r} at {number}")
            for row in range(source.n_rows):
                name = f"prompt {number}" + (f" row {row}" if source.n_rows > 1 else "")
                yield self._item(name, source, row)

    def _item(self, name: str, source: Prompt | Sample, row: int) -> Item:
        answer = answers_at(self.answers, self.n_used)
        self.n_used += 1
        wrong = answer[1] if answer is not None else getattr(source, "wrong", None)
        if self.contrast and wrong is None:
            raise ScoreError(
                f"{self.contrast} needs a wrong answer for every prompt, and {name} has none\n"
                "  give answers=[(right, wrong), ...] or samples with `wrong`, or take metric='log_prob'"
            )
        return Item(name, source, row, answer)

    def check_all_used(self) -> None:
        """ScoreError for more answers than prompts."""
        if self.answers is not None and len(self.answers) != self.n_used:
            raise ScoreError(f"{len(self.answers)} answers were given for {self.n_used} prompt rows: give one a row")


@dataclass(eq=False)
class MakeEffectsWork:
    """Makes the work of a sweep: here with the lens at hand, on a worker of a cluster with one of its own.

    Attributes:
        ablation: what is done.
        rows_per_pass: how large batches may be.
        lens: the model; does not travel.
        device: the kind of device it is on, which a worker must have too.
        origin: opens it elsewhere.
        folder: where a smaller batch is noted; does not travel.
        model: the model's identity, which a worker's must have.
        is_halved: whether memory ran out before, and batches were made smaller.
        own_metric: one number more, by a function of the user's.
    """

    ablation: Ablation
    rows_per_pass: int | None
    lens: Lens | None
    device: str
    origin: Callable[[], Lens] | None = None
    folder: RunFolder | None = None
    model: Mapping[str, Any] | None = None
    is_halved: bool = False
    own_metric: OwnAnswer | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "lens": None, "folder": None}

    def __call__(self) -> EffectsWork:
        if self.lens is None:
            assert self.origin is not None
            self.lens = self.origin()
            if self.lens.device.type != self.device:
                raise LensError(
                    f"the model is on {self.device} here and on {self.lens.device.type} in a Ray worker, which would "
                    "be slow and give other last bits\n"
                    "  give each worker its share: ray=RayCluster(workers=2, num_gpus=1)"
                )
            differing = [] if self.model is None else differences(self.model, self.lens.identity)
            if differing:
                raise LensError(
                    f"a Ray worker has opened another model than the one here: {in_words(differing)}\n"
                    "  it opens the model by name: save the changed one and open that, or sweep without ray"
                )
        on_change = (lambda rows: None) if self.folder is None else self._note
        batches = Batches(self.rows_per_pass, self.lens.device, on_change)
        return EffectsWork(self.lens, self.ablation, batches, self.is_halved, self.own_metric)

    def _note(self, rows: int) -> None:
        assert self.folder is not None
        self.folder.note(rows_per_pass=rows)


@dataclass(frozen=True, eq=False)
class _AtHand:
    """The last source, made into a prompt, with the ablation bound to it: the rows of a batch follow one another."""

    source: Prompt | Sample
    prompt: Prompt
    ablation: AblationOn


@dataclass(eq=False)
class EffectsWork:
    """The effects on one item after the other."""

    lens: Lens
    ablation: Ablation
    batches: Batches
    was_halved: bool = False
    own_metric: OwnAnswer | None = None
    forwards: Forwards = field(init=False)
    _at_hand: _AtHand | None = None

    def __post_init__(self) -> None:
        self.forwards = Forwards(self.lens, self.batches)
        self._rows_at_first = self.batches.rows

    @property
    def _is_halved(self) -> bool:
        return self.was_halved or self.batches.rows < self._rows_at_first

    def prepare(self, item: Item) -> Item:
        """The item with its prompt made, ahead of time and in another thread; as it was where none can be made."""
        if not isinstance(item.source, Sample):
            return item
        try:
            return replace(item, prompt=self._prompt(item))
        except Exception:
            return item  # tried again when its turn comes, where the error belongs to it

    def _prompt(self, item: Item) -> Prompt:
        if item.prompt is not None:
            return item.prompt
        assert not isinstance(item.source, Bad)
        return item.source.prompt(self.lens) if isinstance(item.source, Sample) else item.source

    def __call__(self, item: Item) -> dict[str, Tensor]:
        """What was said on the plain forward, and with each unit ablated.

        Raises:
            LeftOutError: the item cannot be used, and may be left out.
        """
        if isinstance(item.source, Bad):
            raise LeftOutError(f"{item.source.reason}\t{item.source.detail}", self._blank())
        if self._at_hand is None or self._at_hand.source is not item.source:
            with self._leaving_out(item, PromptError, "no prompt"):
                prompt = self._prompt(item)
            self._at_hand = _AtHand(item.source, prompt, self.ablation.on(self.lens, prompt))
        prompt, ablation = self._at_hand.prompt, self._at_hand.ablation
        clean = self.forwards.clean(prompt)[item.row]
        with self._leaving_out(item, ScoreError, "no answer token"):
            goal = self._goal(item, clean)
        changed, way = self.forwards.changed(prompt, item.row, ablation.changes(item.row))
        found = Outcomes.of(torch.cat([clean[None].to(changed.device), changed]), goal, self.own_metric)
        number = int(way) + (HALVED if self._is_halved else 0)
        return {**found.tensors(), "is_yes": torch.tensor(goal.is_yes), "way": torch.tensor(number)}

    @contextmanager
    def _leaving_out(self, item: Item, kind: type[LensError], reason: str) -> Iterator[None]:
        """Inside, an error of this kind is the item's own, and ends nothing where it may be left out."""
        try:
            yield
        except kind as error:
            if not item.may_be_left_out:
                raise
            raise LeftOutError(f"{reason}\t{str(error).splitlines()[0]}", self._blank()) from None

    def _blank(self) -> dict[str, Tensor]:
        """What stands in the place of an item that was left out."""
        n = 1 + len(self.ablation.units)
        nothing = torch.full((n, 3), torch.nan, dtype=torch.float64)
        none = torch.zeros(n, dtype=torch.int32)
        own = None if self.own_metric is None else nothing[:, 0]
        found = Outcomes(nothing[:, :2], nothing[:, 2], none, none.to(torch.int8), own)
        return {**found.tensors(), "is_yes": torch.tensor(-1), "way": torch.tensor(int(Way.LEFT_OUT))}

    def _goal(self, item: Item, clean: Tensor) -> Goal:
        if item.answer is None and isinstance(item.source, Sample):
            return goal_of_texts(self.lens, clean, item.source.answer, item.source.wrong)
        return goal_of(self.lens, clean, item.answer)


def origin_of(lens: Lens) -> Callable[[], Lens]:
    """What opens the same lens in another process: by name where it was opened by name, else with its model."""
    if lens.origin is not None:
        return lens.origin
    model, processor, backend = lens.model, lens.processor, lens.backend

    def reopened() -> Lens:
        from ..lens import Lens

        return Lens(model, processor, backend)

    return reopened
