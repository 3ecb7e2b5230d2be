"""Causal effects of heads: what the answer loses when a head, or a set of heads, is ablated.

    effect = metric without the ablation - metric with it        per prompt, at the last prompt token

So a positive effect is a head that helps. For every prompt the plain forward runs once; the ablated ones are computed
from it by the exact way that the row scope allows (`lmm_lens.replay`), or one forward each where none does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..checkpoint import digest, fingerprint
from ..data import Sample
from ..errors import ScoreError
from ..heads import HeadSet
from ..interventions.means import HeadMeans
from ..prompt import Prompt
from ..rows import RowsLike
from ..runs import RayLike, RunFolder, Store, stream
from .ablations import Ablation, Partner, units_of
from .answers import Answer
from .effect_scores import KIND, HeadEffects
from .forwards import Forwards
from .memory import Batches
from .outcomes import Goal, Outcomes, answers_at, goal_of, goal_of_texts, metric_named

if TYPE_CHECKING:
    from ..lens import Lens

Answers = Sequence[tuple[Answer, Answer | None]]


def head_effects(
    lens: Lens,
    prompts: Prompt | Iterable[Prompt | Sample],
    ablation: str = "zero",
    rows: RowsLike = "last",
    metric: str = "log_prob",
    *,
    answers: Answers | None = None,
    heads: HeadSet | Sequence[HeadSet] | None = None,
    reference: HeadMeans | Partner | None = None,
    folder: str | os.PathLike[str] | None = None,
    ray: RayLike = None,
    rows_per_pass: int | None = None,
    seconds_per_part: float = 10.0,
    progress: bool = False,
) -> HeadEffects:
    """Ablate every head, or sets of heads, on every prompt, and measure what the answer loses.

    All rows, the rows after the image and the last row are three different experiments. One sweep answers for every
    metric: `effects.of("accuracy")` computes nothing anew.

    Args:
        lens: the model.
        prompts: prompts or batches of them, samples of a data set (`lmm_lens.data`), or any iterator of these; it is
            read once, as it goes, so it may be of any length.
        ablation: "zero", "mean", "resample" or "uniform"; see `lmm_lens.interventions.ablate.MODES`.
        rows: which query rows the heads are ablated in: "last", "after_image", "all", any other mask name, positions,
            or Bool[batch, position].
        metric: "log_prob", "logit_difference", "probability" or "accuracy"; see `lmm_lens.experiments.outcomes`.
        answers: (right, wrong) of each prompt row, token ids or texts of one token, wrong may be None. Samples bring
            their own; by default what the model itself answers.
        heads: a HeadSet, each of whose heads is ablated alone; a list of HeadSets, each ablated at once; None for
            every head alone.
        reference: for "mean" the `head_means`; for "resample" a function that gives, for a prompt, the one of the same
            layout whose head outputs are put in.
        folder: a run folder, made if it is not there. What is finished is in it, so the same call goes on after
            whatever ended the last one, and ends with the same numbers.
        ray: None for here, the number of local workers, the address of a Ray cluster, or a `RayCluster`.
        rows_per_pass: how many rows one batch may have, all ablations together; halved whenever memory runs out.
        seconds_per_part: with a folder, after how many seconds at most results are written.
        progress: show a progress bar.

    Returns:
        HeadEffects, Float[prompt, unit].

    Raises:
        ScoreError: no prompts, answers that tell nothing apart, rows that select nothing in a prompt, a folder of
            another run.
        HookError: a head, layer or row scope that does not exist.
        InterventionError: an ablation without its reference.
    """
    chosen = metric_named(metric)
    change = Ablation(units_of(lens, heads), ablation, rows, reference)
    about = {
        "model": lens.identity,
        "ablation": ablation,
        "rows": rows if isinstance(rows, str) else fingerprint(rows),
        "units": [[list(head) for head in unit] for unit in change.units],
        "shape": [lens.n_layers, lens.n_heads],
        "reference": fingerprint(reference) if isinstance(reference, HeadMeans) else bool(reference),
    }
    settings = getattr(prompts, "settings", None)
    if isinstance(settings, Mapping):
        about["data"] = dict(settings)
    items = _Items(prompts, answers, metric if chosen.needs_wrong else "")
    opened = None if folder is None else RunFolder(folder, KIND, about)
    try:
        given = rows_per_pass or (opened.state.get("rows_per_pass") if opened is not None else None)
        make = MakeWork(change, given, lens, _origin(lens) if ray is not None else None, opened)
        what = {"progress": progress, "what": "ablating heads", "seconds_per_part": seconds_per_part}
        store = stream(items, make, _key_of, opened, ray=ray, **what)
        if not store.n_items:
            raise ScoreError("no prompts were given: expected a Prompt, or prompts or samples one after the other")
        items.check_all_used()
        if opened is not None:
            _finish(opened, store, items)
        effects = HeadEffects.of_store(store, about, metric)
    finally:
        if opened is not None:
            opened.close()
    return effects


def _finish(folder: RunFolder, store: Store, items: _Items) -> None:
    problems = getattr(items.prompts, "problems", None)
    if not folder.finished:
        folder.finish(store.n_items, {"problems": str(problems)} if problems else {})


@dataclass(frozen=True, eq=False)
class Item:
    """One row of a sweep.

    Attributes:
        name: for people.
        source: a sample, or a prompt.
        row: which row of the prompt.
        answer: (right, wrong) as given; None for a sample's own, or the model's.
    """

    name: str
    source: Prompt | Sample
    row: int = 0
    answer: tuple[Answer, Answer | None] | None = None


def _key_of(item: Item) -> str:
    own = item.source.key if isinstance(item.source, Sample) else digest(item.source)
    return f"{item.name}\t{own}{'' if item.answer is None else fingerprint(item.answer)}"


class _Items:
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
        for number, source in enumerate(self.prompts):
            if isinstance(source, Sample):
                yield self._item(source.id, source, 0)
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
class MakeWork:
    """Makes the work of a sweep: here with the lens at hand, on a worker of a cluster with one of its own.

    Attributes:
        ablation: what is done.
        rows_per_pass: how large batches may be.
        lens: the model; does not travel.
        origin: opens it elsewhere.
        folder: where a smaller batch is noted; does not travel.
    """

    ablation: Ablation
    rows_per_pass: int | None
    lens: Lens | None
    origin: Callable[[], Lens] | None = None
    folder: RunFolder | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "lens": None, "folder": None}

    def __call__(self) -> Work:
        if self.lens is None:
            assert self.origin is not None
            self.lens = self.origin()
        on_change = (lambda rows: None) if self.folder is None else self._note
        return Work(self.lens, self.ablation, Batches(self.rows_per_pass, self.lens.device, on_change))

    def _note(self, rows: int) -> None:
        assert self.folder is not None
        self.folder.note(rows_per_pass=rows)


@dataclass(eq=False)
class Work:
    """The effects on one item after the other."""

    lens: Lens
    ablation: Ablation
    batches: Batches
    forwards: Forwards = field(init=False)
    _at_hand: tuple[Any, Prompt, Any] | None = None  # the rows of a batch follow one another

    def __post_init__(self) -> None:
        self.forwards = Forwards(self.lens, self.batches)

    def __call__(self, item: Item) -> dict[str, Tensor]:
        """What was said on the plain forward, and with each unit ablated."""
        if self._at_hand is None or self._at_hand[0] is not item.source:
            prompt = item.source.prompt(self.lens) if isinstance(item.source, Sample) else item.source
            self._at_hand = item.source, prompt, self.ablation.on(self.lens, prompt)
        _, prompt, change = self._at_hand
        clean = self.forwards.clean(prompt)[item.row]
        goal = self._goal(item, clean)
        changed, way = self.forwards.changed(
            prompt, item.row, len(self.ablation.units), change.variants, change.intervention
        )
        found = Outcomes.of(torch.cat([clean[None].to(changed.device), changed]), goal)
        return {**found.tensors(), "is_yes": torch.tensor(goal.is_yes), "way": torch.tensor(way)}

    def _goal(self, item: Item, clean: Tensor) -> Goal:
        if item.answer is None and isinstance(item.source, Sample):
            return goal_of_texts(self.lens, clean, item.source.answer, item.source.wrong)
        return goal_of(self.lens, clean, item.answer)


def _origin(lens: Lens) -> Callable[[], Lens]:
    if lens.origin is not None:
        return lens.origin
    model, processor, backend = lens.model, lens.processor, lens.backend

    def reopened() -> Lens:
        from ..lens import Lens

        return Lens(model, processor, backend)

    return reopened
