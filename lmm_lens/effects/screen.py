"""Screening: which heads are worth an exact ablation, estimated for all of them from one backward pass a prompt.

    effect of ablating a head ~ sum over its rows of (z - what z is replaced by) . d metric / d z

the first-order estimate (Nanda 2023; attribution patching in `lmm_lens.patching.attribution`, here of an ablation). The
heads with the largest estimates are then ablated exactly, and so is a random sample of the others: the rank correlation
of estimates and effects on that sample is the estimate's error bar.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..answers.items import Item, Items
from ..answers.outcomes import AnswerMetric, Outcomes
from ..core.rows import Rows
from ..core.taps import Tap, TapContext
from ..data.problems import Bad
from ..errors import RemoteError, ScoreError
from ..hooks.heads import HeadSet
from ..hooks.points import ModelShape
from ..interventions.base import Intervention
from ..patching.probe import differentiable
from ..prompts.prompt import Prompt
from ..replay.batches import Batches
from ..runs.job import LeftOutError
from .ablations import Ablation, AblationOn
from .work import EffectsWork

if TYPE_CHECKING:
    from ..lens import Lens

SCREENS = ("attribution",)


@dataclass(frozen=True, eq=False)
class Screen:
    """What a screened sweep knows of the heads that it did not ablate.

    Attributes:
        estimates: Float[layer, head], the mean estimated effect of each head that was screened, NaN for others.
        best: the heads with the largest estimates, which were ablated exactly, best first.
        sample: random others, which were too.
        effects: their exact mean effects, Float[best + sample].
        metric: of all numbers.
    """

    estimates: Float[Tensor, "layer head"]
    best: HeadSet
    sample: HeadSet
    effects: Float[Tensor, " verified"]
    metric: str

    @property
    def n_screened(self) -> int:
        """How many heads have an estimate."""
        return int((~self.estimates.isnan()).sum())

    @property
    def rank_correlation(self) -> float:
        """Spearman's rank correlation of estimates and exact effects on the random sample; NaN for fewer than 3."""
        import pandas

        if len(self.sample) < 3:
            return float("nan")
        estimates = [float(self.estimates[head]) for head in self.sample]
        ranks = pandas.DataFrame({"estimate": estimates, "effect": self.effects[len(self.best) :].numpy()}).rank()
        return float(ranks["estimate"].corr(ranks["effect"]))

    @property
    def n_above(self) -> int:
        """How many heads of the random sample have a larger exact effect than the weakest of the best."""
        best, sample = self.effects[: len(self.best)], self.effects[len(self.best) :]
        return int((sample > best.min()).sum())

    def __repr__(self) -> str:
        return (
            f"{len(self.best)} of {self.n_screened} heads chosen by attribution and ablated exactly; on "
            f"{len(self.sample)} random others estimate and effect have rank correlation {self.rank_correlation:.2f}, "
            f"and {self.n_above} of them have a larger effect than the weakest chosen"
        )


def to_about(estimates: Float[Tensor, "layer head"], best: HeadSet, sample: HeadSet, metric: str) -> dict[str, Any]:
    """What a sweep keeps of its screening, of JSON types."""
    values = [[None if value != value else value for value in row] for row in estimates.tolist()]
    return {"estimates": values, "best": list(map(list, best)), "sample": list(map(list, sample)), "metric": metric}


def from_about(about: Mapping[str, Any], shape: Sequence[int], effects: Float[Tensor, "layer head"]) -> Screen:
    """The screening that `to_about` described; effects are the exact ones, NaN where there is none."""
    estimates = torch.tensor([[torch.nan if v is None else v for v in row] for row in about["estimates"]])
    n_layers, n_heads = shape
    best, sample = (HeadSet([tuple(head) for head in about[name]], n_layers, n_heads) for name in ("best", "sample"))
    verified = torch.stack([effects[head] for head in (*best, *sample)])
    return Screen(estimates, best, sample, verified, about["metric"])


def choose(
    estimates: Float[Tensor, "layer head"], among: HeadSet, verify: int, n_sample: int, seed: int
) -> tuple[HeadSet, HeadSet]:
    """The heads with the largest estimates, and a random sample of the others."""
    ranked = sorted(among, key=lambda head: -float(estimates[head]))
    others = ranked[verify:]
    drawn = random.Random(seed).sample(others, min(n_sample, len(others)))
    shape = among.n_layers, among.n_heads
    return HeadSet(ranked[:verify], *shape), HeadSet(drawn, *shape)


# ---------------------------------------------------------------------- estimates


def mean_estimates(
    lens: Lens, items: Items, ablation: Ablation, metric: AnswerMetric, name: str
) -> Float[Tensor, "layer head"]:
    """The mean estimate of every head's effect; NaN where the model has no head.

    Args:
        lens: the model.
        items: prompts and answers; they are gone through here, and again by the sweep.
        ablation: what would be done to each head.
        metric, name: of which number, and what it is called.

    Raises:
        ScoreError: a metric or an ablation without a gradient, or no prompt that could be used.
        RemoteError: the model is on a server.
    """
    if lens.remote:
        raise RemoteError("gradients do not travel: screen= needs a lens with remote=False")
    if name == "accuracy":
        raise ScoreError(
            "accuracy has no gradient to screen by\n  screen by metric='log_prob', and ask the result .of('accuracy')"
        )
    if ablation.mode.startswith("uniform"):
        raise ScoreError(
            f"ablation {ablation.mode!r} has no estimate: it depends on what the head would read\n"
            "  screen 'zero', 'mean' or 'resample', or leave screen= out"
        )
    if isinstance(items.prompts, Iterator):
        raise ScoreError("screen= goes over the prompts twice: give a list or a data set, not an iterator")
    total, n = torch.zeros(lens.n_layers, lens.n_heads, dtype=torch.float64), 0
    work = EffectsWork(lens, ablation, Batches(None, lens.device))
    for prompt, rows in _prompts(work, items):
        found, n_used = _estimates(lens, prompt, ablation.on(lens, prompt), work, rows, metric)
        total += found
        n += n_used
    if not n:
        raise ScoreError("no prompt can be used, so no head was screened")
    heads = torch.tensor([[head < count for head in range(lens.n_heads)] for count in lens.shape.n_heads])
    return (total / n).masked_fill(~heads, torch.nan)


def _prompts(work: EffectsWork, items: Items) -> Iterator[tuple[Prompt, list[Item]]]:
    """Each prompt with its rows; what a sweep would leave out is left out."""
    for _, group in groupby(items, key=lambda item: id(item.source)):
        rows = list(group)
        if isinstance(rows[0].source, Bad):
            continue
        try:
            yield work.prompt_of(rows[0]), rows
        except LeftOutError:
            continue


def _estimates(
    lens: Lens, prompt: Prompt, ablation: AblationOn, work: EffectsWork, items: Sequence[Item], metric: AnswerMetric
) -> tuple[Float[Tensor, "layer head"], int]:
    """The sum of the estimates on some rows of one prompt, fp64 on the CPU, and of how many that could be used.

    Of the model as the ablations find it: with what an enclosing `lens.apply(...)` puts into it.
    """
    probe = _Probe(Rows("screened", ablation.rows))
    with differentiable(lens.model):
        logits = lens.run(prompt, [probe], logits="last", grad=True).logits[:, 0]
        numbers = []
        for item in items:
            try:
                goal = work.goal_of(item, logits[item.row].detach())
            except LeftOutError:
                continue
            numbers.append(metric.of(Outcomes.of(logits[item.row][None], goal)).sum())
        if not numbers:
            return torch.zeros(lens.n_layers, lens.n_heads, dtype=torch.float64), 0
        leaves = [leaf for parts in probe.found.values() for _, leaf, _ in parts]
        total = torch.stack(numbers).sum()  # the rows of a batch do not depend on each other
        gradients = iter(torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True))
    found = torch.zeros(lens.n_layers, lens.n_heads, dtype=torch.float64)
    for layer, parts in probe.found.items():
        sources = [ablation.source(row, layer) for row in range(prompt.n_rows)]
        for z, _, positions in parts:
            change = z.double()
            if isinstance(sources[0], Tensor):
                new = torch.stack([source for source in sources if isinstance(source, Tensor)]).to(z.device)
                change = change - new[torch.arange(len(z), device=z.device)[:, None], positions.clamp_min(0)].double()
            product = change * next(gradients).double()
            found[layer, : z.shape[2]] += product.nan_to_num().sum((0, 1, 3)).cpu()
    return found, len(numbers)


@dataclass(frozen=True, eq=False)
class _Probe(Intervention):
    """Add zeros that remember their gradient to every z, and keep what they were added to. For one run.

    Args:
        rows: where.

    Attributes:
        found: layer to (z, probe, positions) of each part of its rows, in order.
    """

    rows: Rows
    found: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = field(default_factory=dict)

    def taps(self, prompt: Prompt, shape: ModelShape) -> list[Tap]:
        """One edit a layer that changes nothing."""
        layers = [layer for layer in range(shape.n_layers) if shape.n_heads[layer]]
        self.found.update({layer: [] for layer in layers})
        return [Tap("z", layer, self.rows, self._add, edits=True) for layer in layers]

    def _add(self, z: Tensor, context: TapContext) -> Tensor:
        probe = torch.zeros_like(z, requires_grad=True)
        self.found[context.layer].append((z.detach(), probe, context.positions))
        return z + probe

    def __repr__(self) -> str:
        return "probing z"
