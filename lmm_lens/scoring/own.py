"""Metrics of heads of one's own: a function of a query row's attention and of masks over its keys.

    def on_the_question(pattern, keys):
        '''Attention on the words of the question.'''
        return (pattern * keys["question"][:, None, None]).sum(-1)

    scores = score_heads(lens, prompts, metric=on_the_question)

`pattern` is Float[batch, head, query, key] in fp32 or better, some rows of it, each to be reduced to one number; `keys`
has masks Bool[batch, key]: by the names of the prompt's masks, and `visual`, `region` and `sink` where these were asked
for, see `lmm_lens.core.measures.KeyMasks`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ..core.measures import KeyMasks
from ..core.own import own_measure
from ..errors import ScoreError
from .metrics import HEAD_METRICS, HeadMetric, head_metric

OwnMetric = Callable[[Tensor, KeyMasks], Tensor]


def metric_of(metric: str | HeadMetric | OwnMetric, boxes: bool, relevant: bool, sinks: bool) -> HeadMetric:
    """The metric that is meant.

    Args:
        metric: a name of `HEAD_METRICS`, a function, or a `HeadMetric` of one's own, which can say more of itself.
        boxes, relevant, sinks: what was given beside it; of a function it is what it needs.

    Raises:
        ScoreError: there is none of the name, or the function has no name of its own.
    """
    if isinstance(metric, str):
        return head_metric(metric)
    if isinstance(metric, HeadMetric):
        own = metric
    elif callable(metric):
        name = str(getattr(metric, "__name__", ""))
        said = (inspect.getdoc(metric) or name or " ").splitlines()[0]
        own = HeadMetric(name, said, "a function of one's own", metric, sinks, boxes, relevant, unit=name)
    else:
        raise ScoreError(f"metric is a name, a function (pattern, keys) -> score, or a HeadMetric, given {metric!r}")
    if own is HEAD_METRICS.get(own.name):
        return own
    if own.of is None or not own.name.isidentifier():
        raise ScoreError(
            f"a metric of your own is a function with a name, which the results are called by, given {own.name!r}\n"
            "  write it with def, or give HeadMetric(name, meaning, source, function)"
        )
    if own.name in HEAD_METRICS:
        raise ScoreError(f"{own.name!r} is a metric of this library: give your own another name")
    return replace(own, of=own_measure(own.name, own.of), is_own=True)


def about_own(metric: HeadMetric) -> dict[str, Any]:
    """What results say of a metric that is in no table."""
    if not metric.is_own:
        return {}
    told = {"meaning": metric.meaning, "unit": metric.unit, "higher_is_better": metric.higher_is_better}
    return {"own_metric": told}


def check_finite(
    metric: HeadMetric,
    scores: Float[Tensor, "metric batch layer head"],
    layers: Sequence[int],
    heads: Sequence[int],
    n: int,
) -> None:
    """ScoreError where a metric of one's own gave a number that is none, with the first head it did so for.

    Args:
        metric: whose.
        scores: of a prompt.
        layers: those that were scored.
        heads: of each of all layers, how many.
        n: prompt rows before.
    """
    for layer in layers:
        wrong = (~scores[0, :, layer, : heads[layer]].isfinite()).nonzero().tolist()
        if wrong:
            row, head = wrong[0]
            raise ScoreError(
                f"{metric.name} gave {float(scores[0, row, layer, head])} for head {head} of layer {layer} of prompt "
                f"row {n + row}\n  a score is a finite number for every row, whatever it attends to"
            )
