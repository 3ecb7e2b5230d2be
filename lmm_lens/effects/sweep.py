"""Causal effects of heads: what the answer loses when a head, or a set of heads, is ablated.

    effect = metric without the ablation - metric with it        per prompt, at the last prompt token

So a positive effect is a head that helps. For every prompt the plain forward runs once; the ablated ones are computed
from it by the exact way that the row scope allows (`lmm_lens.replay`), or one forward each where none does.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..answers.items import Answers, Items, key_of
from ..answers.outcomes import answer_metric
from ..answers.own import AnswerFunction, OwnAnswer
from ..data import Sample
from ..data.settings import without_contents
from ..errors import ScoreError, unknown
from ..hooks.heads import VISION, HeadSet
from ..interventions.base import checked_part
from ..interventions.means import HeadMeans
from ..lens.travelling import TravellingLens
from ..prompts.prompt import Prompt
from ..prompts.rows import RowsLike
from ..runs import RayLike, RunFolder, Store, stream
from ..runs.checkpoint import applied_in, fingerprint
from .ablations import Ablation, Partner, described, heads_of, units_of
from .scores import KIND, HeadEffects
from .screen import SCREENS, choose, mean_estimates, to_about
from .tower import TowerAblation, tower_units
from .work import MakeEffectsWork

if TYPE_CHECKING:
    from ..lens import Lens


def head_effects(
    lens: Lens,
    prompts: Prompt | Iterable[Prompt | Sample],
    ablation: str = "zero",
    rows: RowsLike | None = None,
    metric: str | AnswerFunction = "log_prob",
    *,
    answers: Answers | None = None,
    heads: HeadSet | Sequence[HeadSet] | None = None,
    part: str | None = None,
    screen: str | None = None,
    verify: int = 10,
    sample: int = 16,
    seed: int = 0,
    reference: HeadMeans | Partner | None = None,
    folder: str | os.PathLike[str] | None = None,
    ray: RayLike = None,
    rows_per_pass: int | None = None,
    seconds_per_part: float = 10.0,
    changed: str = "refuse",
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
        rows: which query rows the heads are ablated in: "last", the default, "after_image", "all", any other mask name,
            positions, or Bool[batch, position]. Of the vision tower "all", the default, "image", "class" or "register".
        metric: "log_prob", "logit_difference", "probability" or "accuracy"; see `lmm_lens.answers.outcomes`. Or a
            function of your own, (logits, goal) -> numbers, see `lmm_lens.answers.own`; the results are called by its
            name, and an effect is positive where the ablation lowers the number.
        answers: (right, wrong) of each prompt row, token ids or texts of one token, wrong may be None. Samples bring
            their own; by default what the model itself answers.
        heads: a HeadSet, each of whose heads is ablated alone; a list of HeadSets, each ablated at once; None for
            every head alone.
        part: "decoder" or "vision", by default what head sets say, else the decoder. Heads of the vision tower are
            ablated by "zero" or "uniform"; the tower then runs again from the ablated layer on.
        screen: "attribution" to estimate every head's effect from one backward pass a prompt, and to ablate exactly
            only those with the largest; `effects.screen` says how far that can be trusted. The prompts are gone
            through twice. Worth it in rows that are slow to ablate, not in the last one, and by metric
            "logit_difference": where a model is sure, "log_prob" has next to no slope. None for every head exactly.
        verify: with a screen, how many heads are ablated exactly.
        sample: with a screen, how many random others are too, as its error bar.
        seed: of that sample.
        reference: for "mean" the `head_means`; for "resample" a function that gives, for a prompt, the one of the same
            layout whose head outputs are put in.
        folder: a run folder, made if it is not there. What is finished is in it, so the same call goes on after
            whatever ended the last one, and ends with the same numbers.
        ray: None for here, the number of local workers, the address of a Ray cluster, or a `RayCluster`.
        rows_per_pass: how many rows one batch may have, all ablations together; halved whenever memory runs out.
        seconds_per_part: with a folder, after how many seconds at most results are written.
        changed: with a folder, what to do where a prompt is not what it was when its result was written (a picture
            replaced, a question corrected): "refuse", or "recompute" those and keep the others; the results of prompts
            behind the last one now given are then dropped.
        progress: show a progress bar.

    Returns:
        HeadEffects, Float[prompt, unit].

    Raises:
        ScoreError: no prompts, answers that tell nothing apart, rows that select nothing in a prompt, a folder of
            another run.
        HookError: a head, layer or row scope that does not exist.
        InterventionError: an ablation without its reference.
        RemoteError: a screen on a server, where gradients do not travel.
    """
    own = None if isinstance(metric, str) else OwnAnswer.of(metric)
    name = metric if isinstance(metric, str) else OwnAnswer.of(metric).name
    needs_wrong = isinstance(metric, str) and answer_metric(metric).needs_wrong
    of_tower = _is_tower(part, heads)
    if rows is None:
        rows = "all" if of_tower else "last"
    if screen is not None:
        if of_tower:
            raise ScoreError("a screen is of heads of the decoder: give part='vision' without screen=")
        if not isinstance(metric, str):
            raise ScoreError(
                f"a screen ranks heads by the gradient of a metric of this library, given the function {name}\n"
                "  take a named metric, or no screen"
            )
        options: dict[str, Any] = {
            "folder": folder,
            "ray": ray,
            "rows_per_pass": rows_per_pass,
            "seconds_per_part": seconds_per_part,
        }
        options |= {"changed": changed, "progress": progress, "answers": answers, "reference": reference}
        return _screened(lens, prompts, ablation, rows, metric, heads, screen, verify, sample, seed, options)
    if rows_per_pass is not None and rows_per_pass < 1:
        raise ScoreError(f"rows_per_pass is at least 1, given {rows_per_pass}")
    ablated = (
        TowerAblation(tower_units(lens, heads), ablation, rows, reference)
        if of_tower
        else Ablation(units_of(lens, heads), ablation, rows, reference)
    )
    about = {
        "model": lens.identity,
        **applied_in(lens),
        "ablation": ablation,
        "rows": rows if isinstance(rows, str) else fingerprint(rows),
        "units": [[list(head) for head in unit] for unit in ablated.units],
        "shape": [lens.vision.n_layers, lens.vision.n_heads] if of_tower else [lens.n_layers, lens.n_heads],
        "reference": described(reference),
    }
    if of_tower:
        about["part"] = VISION
    settings = getattr(prompts, "settings", None)
    if isinstance(settings, Mapping):
        about["data"] = without_contents({name: value for name, value in settings.items() if name != "on_bad"})
    if own is not None:
        about["own_metric"] = {"name": own.name, "meaning": own.meaning, "code": fingerprint(own.function)}
    items = Items(prompts, answers, name if needs_wrong else "")
    opened = None if folder is None else RunFolder(folder, KIND, about)
    try:
        halved_to = opened.state.get("rows_per_pass") if opened is not None and rows_per_pass is None else None
        make = MakeEffectsWork(
            ablation=ablated,
            rows_per_pass=rows_per_pass or halved_to,
            is_halved=halved_to is not None,
            lens=TravellingLens.of(lens, about["model"], travels=ray is not None),
            folder=opened,
            own_metric=own,
        )
        store = stream(
            items,
            make,
            key_of,
            opened,
            ray=ray,
            progress=progress,
            what="ablating heads",
            seconds_per_part=seconds_per_part,
            changed=changed,
        )
        if not store.n_items:
            raise ScoreError("no prompts were given: expected a Prompt, or prompts or samples one after the other")
        items.check_all_used()
        if opened is not None:
            _finish(opened, store)
        effects = HeadEffects.of_store(store, ablated.units, about, name)
    finally:
        if opened is not None:
            opened.close()
    return effects


def _is_tower(part: str | None, heads: object) -> bool:
    """Whether heads of the vision tower are meant."""
    sets = [heads] if isinstance(heads, HeadSet) else heads if isinstance(heads, (list, tuple)) else []
    named = {each.part for each in sets if isinstance(each, HeadSet)}
    return checked_part(part or (VISION if named == {VISION} else None)) == VISION


def _screened(
    lens: Lens,
    prompts: Prompt | Iterable[Prompt | Sample],
    ablation: str,
    rows: RowsLike,
    metric: str,
    heads: HeadSet | Sequence[HeadSet] | None,
    screen: str,
    verify: int,
    sample: int,
    seed: int,
    options: dict[str, Any],
) -> HeadEffects:
    """Choose heads by their estimates, then ablate those."""
    if screen not in SCREENS:
        raise ScoreError(unknown("screen", screen, SCREENS))
    if heads is not None and not isinstance(heads, HeadSet):
        raise ScoreError("screen= chooses among single heads: give heads=HeadSet or none, not a list of sets")
    among = heads_of(lens, heads)
    if not 0 < verify <= len(among) or sample < 0:
        raise ScoreError(
            f"verify is 1 to {len(among)} heads and sample 0 or more, given verify={verify}, sample={sample}"
        )
    chosen = answer_metric(metric)
    ablated = Ablation(units_of(lens, among), ablation, rows, options["reference"])
    items = Items(prompts, options["answers"], metric if chosen.needs_wrong else "")
    estimates = mean_estimates(lens, items, ablated, chosen, metric)
    best, others = choose(estimates, among, verify, sample, seed)
    effects = head_effects(lens, prompts, ablation, rows, metric, heads=best | others, **options)
    told = to_about(estimates, best, others, metric)
    return replace(effects, about={**effects.about, "screen": told})


def _finish(folder: RunFolder, store: Store) -> None:
    if not folder.finished:
        folder.finish(store.n_items)
