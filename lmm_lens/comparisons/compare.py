"""Conditions compared on the same items: what each is worth, with paired tests and controls that do as much."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..answers.items import Answers, Item, Items, key_of
from ..answers.outcomes import ANSWER_METRICS
from ..data import Sample
from ..data.settings import without_contents
from ..errors import ScoreError, unknown
from ..interventions.base import Intervention
from ..lens.travelling import TravellingLens
from ..prompts.prompt import Prompt
from ..runs import RayLike, RunFolder, stream
from ..runs.checkpoint import applied_in
from ..warnings import NothingChangedWarning, warn
from .comparison import KIND, Comparison
from .conditions import Condition, Making, as_conditions, with_controls
from .metrics import ComparedMetric, OfText
from .pictures import partners
from .work import ComparedItem, MakeCompareWork

if TYPE_CHECKING:
    from ..lens import Lens


def compare(
    lens: Lens,
    samples: Prompt | Iterable[Prompt | Sample],
    conditions: Mapping[str, Intervention | Sequence[Intervention] | Making | Condition],
    metric: str | OfText = "exact_match",
    *,
    baseline: str | None = None,
    controls: int = 0,
    seed: int = 0,
    answers: Answers | None = None,
    max_new_tokens: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    ray: RayLike = None,
    seconds_per_part: float = 10.0,
    changed: str = "refuse",
    progress: bool = False,
) -> Comparison:
    """Ask the same questions under several conditions.

        table = compare(lens, samples, {"plain": [], "VAR": [var]}, controls=5)
        table.to_pandas(); table.tests()

    Args:
        lens: the model.
        samples: of a data set (`lmm_lens.data`), or prompts of one row with `answers`; any iterator of these.
        conditions: by name: interventions, a function that makes them for a prompt, or a `Condition`, which may change
            the pictures instead.
        metric: of generated text "exact_match", "contains", "yes_no", "yes_no_pope", "letter", or a function of the
            text said and the `Sample` that gives a number; of the first answer token, from one forward and without
            generating, "accuracy", "log_prob", "probability" or "logit_difference".
        baseline: the condition that others are tested against; by default the first.
        controls: how many random controls to draw for each condition that edits anything (`Intervention.control_of`);
            each condition is tested against the mean of its draws, too.
        seed: of the first draw.
        answers: (right, wrong) of each prompt; samples bring their own, and none are taken beside them.
        max_new_tokens: at most so many are generated; by default one more than the answer has for "exact_match", 20
            else.
        folder, ray, seconds_per_part, changed, progress: as in `head_effects`: a folder makes the comparison
            resumable, Ray spreads it.

    Returns:
        Comparison, Float[item, condition].

    Raises:
        ScoreError: no items, conditions or metric that are none, items without what the metric needs, answers beside
            samples, controls where nothing is edited, a folder of another run.
        InterventionError: an intervention without a control where controls are asked for.
    """
    measured = ComparedMetric.of(metric)
    given = as_conditions(conditions)
    if baseline is None:
        baseline = next(iter(given))
    if baseline not in given:
        raise ScoreError(unknown("condition to be the baseline", baseline, tuple(given)))
    if max_new_tokens is not None and max_new_tokens < 1:
        raise ScoreError(f"max_new_tokens is at least 1, given {max_new_tokens}")
    if max_new_tokens is not None and measured.of_text is None:
        raise ScoreError(
            f"{measured.name} is read off the first answer token and generates nothing, given max_new_tokens="
            f"{max_new_tokens}\n  leave it out, or take a metric of text"
        )
    every, control_of = with_controls(given, controls, seed)
    about: dict[str, Any] = {
        "model": lens.identity,
        **applied_in(lens),
        "conditions": [[name, *condition.described] for name, condition in every.items()],
        "control_of": control_of,
        "baseline": baseline,
        "metric": measured.name,
        "meaning": measured.meaning,
        "max_new_tokens": max_new_tokens,
    }
    settings = getattr(samples, "settings", None)
    if isinstance(settings, Mapping):
        about["data"] = without_contents({name: value for name, value in settings.items() if name != "on_bad"})
    needs_wrong = measured.of_text is None and ANSWER_METRICS[measured.name].needs_wrong
    items = Items(samples, answers, measured.name if needs_wrong else "")
    swaps = any(condition.pictures == "swapped" for condition in every.values())
    opened = None if folder is None else RunFolder(folder, KIND, about)
    try:
        store = stream(
            _Compared(items, swaps),
            MakeCompareWork(
                TravellingLens.of(lens, about["model"], travels=ray is not None), every, measured, max_new_tokens
            ),
            _key_of,
            opened,
            ray=ray,
            progress=progress,
            what="comparing conditions",
            seconds_per_part=seconds_per_part,
            changed=changed,
        )
        if not store.n_items:
            raise ScoreError("no items were given: expected samples of a data set, or prompts with answers")
        items.check_all_used()
        if opened is not None and not opened.finished:
            opened.finish(store.n_items)
        compared = Comparison.of_store(store, about)
    finally:
        if opened is not None:
            opened.close()
    for name, condition in every.items():
        edits = compared.edits[:, compared.column(name)]
        if condition.interventions and not bool(edits.any()):
            warn(f"the condition {name!r} changed nothing on any of {len(edits)} items", NothingChangedWarning)
    return compared


class _Compared:
    """Items with the samples whose pictures they may be shown."""

    def __init__(self, items: Items, swaps: bool) -> None:
        self.items, self.swaps = items, swaps

    def __length_hint__(self) -> int:
        try:
            return len(self.items)
        except TypeError:
            return 0

    def __iter__(self) -> Iterator[ComparedItem]:
        items = map(_with_one_answer, self.items)
        if self.swaps:
            return (ComparedItem(item, partner) for item, partner in partners(items))
        return (ComparedItem(item) for item in items)


def _with_one_answer(item: Item) -> Item:
    """The item; ScoreError for a sample whose own answer is not meant."""
    if item.answer is not None and isinstance(item.source, Sample):
        raise ScoreError(
            f"answers are of prompts, and {item.name} is a sample, which is graded by its own\n"
            "  leave answers out, or give samples with other ones: dataclasses.replace(sample, answer=...)"
        )
    return item


def _key_of(compared: ComparedItem) -> str:
    """As of the item; with swapped pictures also by whose they are."""
    key = key_of(compared.item)
    return key if compared.partner is None else f"{key} swapped:{compared.partner.digests['picture']}"
