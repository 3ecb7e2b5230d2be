"""The smallest set of heads that keeps an answer when every other head is ablated.

    f(K) = (m(K) - m(none)) / (m(all) - m(none))        m(K) the mean metric with all heads but K ablated

Three ways to order heads, which find different sets: by the effect of ablating each alone, which misses heads that do
the same as others; by the first-order estimate of that effect, which misleads where the model saturates; greedily, each
time the head that raises m most beside those chosen, which costs a sweep a head and is still not the best set. The set
is the shortest beginning of the order that is measured to keep so much, and beside it stand random sets with as many
heads in each layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..answers.items import Answers, Items
from ..answers.outcomes import answer_metric
from ..data import Sample
from ..effects import HeadEffects, head_effects
from ..effects.ablations import Ablation, Partner, heads_of, units_of
from ..effects.screen import mean_estimates
from ..errors import ScoreError, unknown
from ..hooks.heads import HeadSet
from ..interventions.means import HeadMeans
from ..prompts.prompt import Prompt
from ..prompts.rows import RowsLike
from .heads import SmallestHeads

if TYPE_CHECKING:
    from ..lens import Lens

ORDERS = ("effect", "attribution", "greedy")
MOST_SIZES = 64
NOISE = 1e-5
"""What heads do together counts as nothing below this share of the metric: replays round."""


def smallest_heads(
    lens: Lens,
    prompts: Prompt | Sequence[Prompt | Sample],
    by: str = "effect",
    keep: float = 0.9,
    *,
    ablation: str = "zero",
    rows: RowsLike = "last",
    metric: str = "logit_difference",
    answers: Answers | None = None,
    heads: HeadSet | None = None,
    reference: HeadMeans | Partner | None = None,
    held_out: Prompt | Sequence[Prompt | Sample] | None = None,
    held_out_answers: Answers | None = None,
    n_random: int = 5,
    seed: int = 0,
) -> SmallestHeads:
    """The smallest set of heads that keeps a share of the metric with all others ablated; one of three orders.

    Costs an ablation for each head and size, all of a prompt in one replay; "greedy" one for each head and head chosen.

    Args:
        lens: the model.
        prompts: those by which heads are ordered: prompts, batches or samples. Not an iterator: they are gone through
            more than once.
        by: "effect", "attribution" or "greedy"; they differ, see the module.
        keep: which share, 1 for all that the heads do together.
        ablation, rows, metric, answers, reference: as in `head_effects`.
        heads: among which; all others are left alone. None for all heads of the model.
        held_out: prompts on which the sets are measured; None for those they were ordered on, which flatters them.
        held_out_answers: as `answers`.
        n_random: random sets of those heads with as many in each layer as the smallest, others where there are enough.
        seed: of their draw.

    Raises:
        ScoreError: no such order, a share that is none, the heads together do nothing for the metric, no measured set
            keeps so much, or as `head_effects`.
    """
    if by not in ORDERS:
        raise ScoreError(unknown("order", by, ORDERS))
    answer_metric(metric)
    if not 0 < keep <= 1:
        raise ScoreError(f"keep is a share of what the heads do together, above 0 and at most 1, given {keep}")
    for given in (prompts, held_out):
        if isinstance(given, Iterator):
            raise ScoreError("the prompts are gone through more than once: give a list or a data set, not an iterator")
    among = heads_of(lens, heads)
    task = _Task(lens, among, ablation, rows, metric, reference)
    order = task.order(prompts, answers, by, keep)
    measured, given_answers = (prompts, answers) if held_out is None else (held_out, held_out_answers)
    sizes = _sizes(len(order))
    kept = [order[:n] for n in sizes]
    found, effects = task.keeping([HeadSet([], among.n_layers, among.n_heads), *kept], measured, given_answers)
    with_none, with_all = found[0], effects.clean
    values = (found[1:].mean(1) - with_none.mean()) / task.gap(with_all, with_none)
    enough = (values >= keep).nonzero().flatten().tolist()
    if not enough:
        raise ScoreError(
            f"no measured set of heads keeps {keep:g} of {metric}: the best keeps {float(values.max()):.2f}\n"
            "  ask for less, or among more heads"
        )
    smallest = kept[enough[0]]
    controls = [smallest.random_like(seed + draw, disjoint="most", among=among) for draw in range(n_random)]
    random = task.keeping(controls, measured, given_answers)[0] if controls else found[:0]
    return SmallestHeads(
        by=by,
        keep=keep,
        metric=metric,
        ablation=ablation,
        rows=rows if isinstance(rows, str) else "given positions",
        order=order,
        sizes=tuple(sizes),
        per_prompt=found[1:],
        with_all=with_all,
        with_none=with_none,
        random=random,
        n_kept=sizes[enough[0]],
        held_out=held_out is not None,
        model=dict(effects.about["model"]),
    )


@dataclass(frozen=True, eq=False)
class _Task:
    """What is ablated, where, and what is measured."""

    lens: Lens
    among: HeadSet
    ablation: str
    rows: RowsLike
    metric: str
    reference: HeadMeans | Partner | None

    def effects(self, heads: HeadSet | Sequence[HeadSet], prompts: Any, answers: Answers | None) -> HeadEffects:
        options: dict[str, Any] = {"answers": answers, "reference": self.reference}
        return head_effects(self.lens, prompts, self.ablation, self.rows, self.metric, heads=heads, **options)

    def keeping(
        self, sets: Sequence[HeadSet], prompts: Any, answers: Answers | None
    ) -> tuple[Float[Tensor, "set prompt"], HeadEffects]:
        """The metric with all heads but those of each set ablated; one that keeps all is the plain forward."""
        others = [self.among - each for each in sets]
        some = [each for each in others if each]
        effects = self.effects(some or [self.among], prompts, answers)
        ablated = iter(effects.ablated.T)
        return torch.stack([next(ablated) if each else effects.clean for each in others]), effects

    def gap(self, with_all: Tensor, with_none: Tensor) -> Tensor:
        """What the heads do together on the mean prompt; ScoreError for nothing."""
        gap = with_all.mean() - with_none.mean()
        each = (with_all - with_none).abs().mean()
        if not abs(float(gap)) > float(1e-3 * each + NOISE * with_all.abs().max()):
            raise ScoreError(
                f"with all {len(self.among)} heads ablated the mean {self.metric} is what it was, "
                f"{float(with_all.mean()):.4g}, so no set keeps a share of it: 0 / 0"
            )
        return gap

    def order(self, prompts: Any, answers: Answers | None, by: str, keep: float) -> HeadSet:
        """The heads, best first."""
        if by == "greedy":
            return self._greedily(prompts, answers, keep)
        if by == "effect":
            return self.effects(self.among, prompts, answers).top(len(self.among))
        chosen = answer_metric(self.metric)
        items = Items(prompts, answers, self.metric if chosen.needs_wrong else "")
        ablated = Ablation(units_of(self.lens, self.among), self.ablation, self.rows, self.reference)
        estimates = mean_estimates(self.lens, items, ablated, chosen, self.metric)
        ranked = sorted(self.among, key=lambda head: -float(estimates[head]))
        return HeadSet(ranked, self.among.n_layers, self.among.n_heads)

    def _greedily(self, prompts: Any, answers: Answers | None, keep: float) -> HeadSet:
        chosen = HeadSet([], self.among.n_layers, self.among.n_heads)
        (none,), effects = self.keeping([chosen], prompts, answers)
        gap = self.gap(effects.clean, none)
        while len(chosen) < len(self.among):
            tried = [chosen | HeadSet([head], chosen.n_layers, chosen.n_heads) for head in self.among - chosen]
            values = (self.keeping(tried, prompts, answers)[0].mean(1) - none.mean()) / gap
            ranked = [tried[place].heads[-1] for place in values.argsort(descending=True, stable=True).tolist()]
            if float(values.max()) >= keep:  # the others as they ranked in the last round
                return chosen | HeadSet(ranked, chosen.n_layers, chosen.n_heads)
            chosen = chosen | HeadSet(ranked[:1], chosen.n_layers, chosen.n_heads)
        return chosen


def _sizes(n: int) -> list[int]:
    """How many heads to keep: every number, or of many heads some, closer together at the beginning."""
    if n <= MOST_SIZES:
        return list(range(1, n + 1))
    return sorted({max(1, round(n ** (step / (MOST_SIZES - 1)))) for step in range(MOST_SIZES)})
