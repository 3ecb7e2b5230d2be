"""Is an attribution right? Take the pixels away that it names first, and see whether the answer goes sooner.

The deletion curve (Petsiuk et al., arXiv:1806.07421), patch by patch: the metric with the pixels of the first k visual
tokens replaced by the baseline's, in the order of the attribution and in random orders. A map that says something lies
below the random ones; by how much, as the mean distance of the curves, is its gain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import PromptError, RemoteError, ScoreError
from ..figures.axes import new_axes
from ..interventions.base import Intervention
from ..prompts.prompt import Prompt, check_prompt
from .by_pixels import Baseline, Forwards, LogitOf, PixelMetric, number_of, pixels_at
from .pixel_map import PixelAttribution
from .pixel_places import NOWHERE, pixels_of

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

    from ..lens import Lens

SAME = 0.02
"""How far two runs of one prompt may lie apart, of the score: half precision on another device rounds otherwise."""


@dataclass(frozen=True, eq=False)
class DeletionCurve:
    """What is left of an answer when patches are taken away, those that an attribution names first or any.

    Attributes:
        shares: of the patches that are taken away, ascending from 0 to 1.
        scores: the metric there, in the order of the attribution, in logits.
        random: the same in random orders.
        answers: as in the attribution.
    """

    shares: tuple[float, ...]
    scores: Float[Tensor, " share"]
    random: Float[Tensor, "order share"]
    answers: tuple[str, ...]

    @property
    def gain(self) -> float:
        """How far the curve lies below the random orders', the mean over all shares, in logits."""
        widths = torch.tensor(self.shares)
        return float(torch.trapezoid(self.random.mean(0) - self.scores, widths))

    @property
    def n_worse(self) -> int:
        """How many random orders take the answer away as soon or sooner."""
        widths = torch.tensor(self.shares)
        return int((torch.trapezoid(self.random, widths) <= torch.trapezoid(self.scores, widths)).sum())

    def to_pandas(self) -> pandas.DataFrame:
        """One row a share: the metric, the mean of the random orders, and their least and largest."""
        import pandas

        low, high = self.random.amin(0), self.random.amax(0)
        columns = {"share": self.shares, "score": self.scores, "random": self.random.mean(0), "low": low, "high": high}
        return pandas.DataFrame({name: list(map(float, column)) for name, column in columns.items()})

    def plot(self, ax: Axes | None = None) -> Axes:
        """The curve beside the random orders."""
        ax = ax or new_axes(4.2, 3.0)
        table = self.to_pandas()
        ax.fill_between(table["share"], table["low"], table["high"], color="0.85", label="random orders")
        ax.plot(table["share"], table["random"], color="0.5")
        ax.plot(table["share"], table["score"], color="C3", marker="o", markersize=3, label="by attribution")
        goal = " - ".join(map(repr, self.answers))
        ax.set(xlabel="share of the patches taken away", ylabel=f"{goal} (logits)")
        ax.legend(fontsize=8, frameon=False)
        return ax

    def __repr__(self) -> str:
        n = len(self.random)
        return (
            f"DeletionCurve of {' against '.join(map(repr, self.answers))}: {self.scores[0]:+.2f} with all patches, "
            f"{self.scores[-1]:+.2f} with none\n  {self.gain:+.2f} logits below {n} random orders on average; "
            f"{self.n_worse} of them do as well"
        )


def deletion_curve(
    lens: Lens,
    prompt: Prompt,
    attribution: PixelAttribution,
    *,
    metric: PixelMetric | None = None,
    baseline: Baseline = 0.0,
    points: int = 10,
    n_random: int = 5,
    seed: int = 0,
    interventions: Sequence[Intervention] = (),
) -> DeletionCurve:
    """Take away the patches that a pixel attribution names, the largest first, beside random orders.

    One forward for each point and order.

    Args:
        lens: the model, here and not on a server.
        prompt: which was explained.
        attribution: by `pixel_attribution`.
        metric: for an attribution of a metric of your own, the same again.
        baseline: what stands in place of the pixels, as in `pixel_attribution`.
        points: of the curve, beside its beginning.
        n_random: how many random orders.
        seed: of these.
        interventions: edits under which it is measured.

    Raises:
        ScoreError: fewer than one point or order, an attribution of a metric that is not given, or one whose pixels
            belong to no visual token.
        PromptError: an attribution of another prompt, or one that explains another score than this one has.
    """
    check_prompt(prompt)
    if lens.remote is not False:
        raise RemoteError("a deletion curve needs the pixels' places here, but the model is on a server")
    if points < 1 or n_random < 1:
        raise ScoreError(f"points and n_random are 1 or more, given {points} and {n_random}")
    if metric is None and not attribution.ids:
        raise ScoreError(f"the attribution is of {attribution.answers[0]}: give metric= again, it is no part of it")
    pixels, begin = pixels_of(prompt), pixels_at(baseline, prompt)
    if {name: each.shape for name, each in pixels.items()} != {n: v.shape for n, v in attribution.values.items()}:
        raise PromptError("the attribution is of another prompt: its pixels are of another layout")
    tokens = sorted({int(at) for each in attribution.places.values() for at in each.unique() if at != NOWHERE})
    if not tokens:
        raise ScoreError("no pixel belongs to one visual token alone, as in a Q-former: there are no patches to delete")
    goal = metric or LogitOf(attribution.ids)
    forwards = Forwards(lens, prompt, tuple(interventions))
    n = len(tokens)
    counts = sorted({round(n * point / points) for point in range(points + 1)})

    def curve(order: Sequence[int]) -> Tensor:
        scores = []
        for count in counts:
            gone = torch.tensor(order[:count], dtype=torch.long)
            shown = {}
            for name, each in pixels.items():
                mask = torch.isin(attribution.places[name], gone).to(each.device)
                shown[name] = torch.where(mask, begin[name], each)
            scores.append(number_of(goal, forwards.logits(shown)).detach().double().cpu())
        return torch.stack(scores).float()

    whole = float(number_of(goal, forwards.logits(pixels)))
    if abs(whole - attribution.score) > SAME * max(1.0, abs(attribution.score)):
        raise PromptError(
            f"the attribution explains {attribution.score:.4g}, but here the score is {whole:.4g}: it is of another "
            "prompt, model or metric, or was made under other interventions\n  attribute the pixels of this one"
        )
    draw = torch.Generator().manual_seed(seed)
    by_weight = sorted(tokens, key=lambda at: -float(attribution.weights[at]))
    random = [[tokens[i] for i in torch.randperm(n, generator=draw).tolist()] for _ in range(n_random)]
    return DeletionCurve(
        tuple(count / n for count in counts),
        curve(by_weight),
        torch.stack(list(map(curve, random))),
        attribution.answers,
    )
