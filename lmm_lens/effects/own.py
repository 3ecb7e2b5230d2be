"""The metrics of a sweep: those of the library, and the one of the user's own that it was given, if any."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..answers.outcomes import ANSWER_METRICS, AnswerMetric, Outcomes
from ..errors import ScoreError, unknown


def own_in(about: Mapping[str, Any]) -> tuple[str, ...]:
    """The name of the metric of the user's own in what a sweep says of itself; none without one."""
    return (str(about["own_metric"]["name"]),) if "own_metric" in about else ()


def metric_in(about: Mapping[str, Any], name: str) -> AnswerMetric:
    """A metric of a sweep; ScoreError that lists them for a name that is none."""
    if name in own_in(about):
        return AnswerMetric(str(about["own_metric"]["meaning"]), _own)
    if name not in ANSWER_METRICS:
        raise ScoreError(unknown("metric", name, (*ANSWER_METRICS, *own_in(about))))
    return ANSWER_METRICS[name]


def _own(outcomes: Outcomes) -> Tensor:
    assert outcomes.own is not None
    return outcomes.own
