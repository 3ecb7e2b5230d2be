"""Causal effects of heads: what the answer loses when a head, or a set of heads, is ablated.

    effect = metric without the ablation - metric with it        per prompt, at the last prompt token

So a positive effect is a head that helps. For every prompt the plain forward runs once; the ablated ones are computed
from it by the exact way that the row scope allows (`lmm_lens.replay`), or one forward each where none does.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from ..answers.items import Answers, Items, key_of
from ..answers.outcomes import answer_metric
from ..data import Sample
from ..data.settings import without_contents
from ..errors import ScoreError
from ..hooks.heads import HeadSet
from ..interventions.means import HeadMeans
from ..lens.travelling import TravellingLens
from ..prompts.prompt import Prompt
from ..prompts.rows import RowsLike
from ..runs import RayLike, RunFolder, Store, stream
from ..runs.checkpoint import applied_in, fingerprint
from .ablations import Ablation, Partner, described, units_of
from .scores import KIND, HeadEffects
from .work import MakeEffectsWork

if TYPE_CHECKING:
    from ..lens import Lens


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
        rows: which query rows the heads are ablated in: "last", "after_image", "all", any other mask name, positions,
            or Bool[batch, position].
        metric: "log_prob", "logit_difference", "probability" or "accuracy"; see `lmm_lens.answers.outcomes`.
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
    """
    chosen = answer_metric(metric)
    if rows_per_pass is not None and rows_per_pass < 1:
        raise ScoreError(f"rows_per_pass is at least 1, given {rows_per_pass}")
    ablated = Ablation(units_of(lens, heads), ablation, rows, reference)
    about = {
        "model": lens.identity,
        **applied_in(lens),
        "ablation": ablation,
        "rows": rows if isinstance(rows, str) else fingerprint(rows),
        "units": [[list(head) for head in unit] for unit in ablated.units],
        "shape": [lens.n_layers, lens.n_heads],
        "reference": described(reference),
    }
    settings = getattr(prompts, "settings", None)
    if isinstance(settings, Mapping):
        about["data"] = without_contents({name: value for name, value in settings.items() if name != "on_bad"})
    items = Items(prompts, answers, metric if chosen.needs_wrong else "")
    opened = None if folder is None else RunFolder(folder, KIND, about)
    try:
        halved_to = opened.state.get("rows_per_pass") if opened is not None and rows_per_pass is None else None
        make = MakeEffectsWork(
            ablation=ablated,
            rows_per_pass=rows_per_pass or halved_to,
            is_halved=halved_to is not None,
            lens=TravellingLens.of(lens, about["model"], travels=ray is not None),
            folder=opened,
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
        effects = HeadEffects.of_store(store, ablated.units, about, metric)
    finally:
        if opened is not None:
            opened.close()
    return effects


def _finish(folder: RunFolder, store: Store) -> None:
    if not folder.finished:
        folder.finish(store.n_items)
