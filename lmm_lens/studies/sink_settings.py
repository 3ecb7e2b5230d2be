"""What a study of sinks depends on beside the model and the data, and what its conditions are called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..comparisons.metrics import ComparedMetric
from ..errors import ScoreError, unknown
from ..interventions.var import TASKS

PAPER = 0.6
"""The paper's transfer fraction; its ratios are `lmm_lens.interventions.var.TASKS`."""
MASKED = "sinks masked"


@dataclass(frozen=True)
class SinkSettings:
    """What a study of sinks depends on beside the model and the data.

    Attributes:
        tasks: the type of task of each data set, by its name: "general" (where nothing is said), "hallucination" or
            "vision_centric".
        metrics: of `compare`, by the name of the data set; `metric` where nothing is said.
        metric: of all other data sets.
        fractions: VAR's `transfer_fraction`; the paper's 0.6 is added.
        ratios: VAR's `min_nonsink_ratio`; the ratio of each task is added.
        controls: random draws beside each condition.
        max_new_tokens: as in `compare`.
        seed: of everything that is drawn.

    Raises:
        ScoreError: one of these cannot be meant.
    """

    tasks: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, str] = field(default_factory=dict)
    metric: str = "exact_match"
    fractions: tuple[float, ...] = (0.3, 0.6, 0.9)
    ratios: tuple[float, ...] = (0.5, 0.8, 0.9)
    controls: int = 1
    max_new_tokens: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for task in self.tasks.values():
            if task not in TASKS:
                raise ScoreError(unknown("type of task", task, TASKS))
        for metric in (self.metric, *self.metrics.values()):
            ComparedMetric.of(metric)
        if self.controls < 1:
            raise ScoreError(f"a study has at least 1 random control, given controls={self.controls}")

    def task(self, data: str) -> str:
        """The type of task of a data set."""
        return self.tasks.get(data, "general")

    def grid(self, data: str) -> list[tuple[float, float]]:
        """(fraction, ratio) of each VAR, the paper's among them."""
        fractions = sorted({*self.fractions, PAPER})
        return [(p, rho) for rho in sorted({*self.ratios, TASKS[self.task(data)]}) for p in fractions]

    def paper(self, data: str) -> tuple[float, float]:
        """The paper's setting for a data set."""
        return PAPER, TASKS[self.task(data)]


def condition_of(fraction: float, ratio: float) -> str:
    """What the condition with this VAR is called."""
    return f"VAR p={fraction:g} rho={ratio:g}"
