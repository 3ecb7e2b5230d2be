"""What a head can be scored by. Each metric is a pure function of one query row's attention and of key masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor

from .. import kernels
from ..errors import ScoreError, unknown


class KeyMasks(NamedTuple):
    """The keys a metric may ask about, each Bool[batch, key].

    Attributes:
        visual: patch tokens of pictures and video frames.
        n_visual: how many of them the prompt row has, also where a sliding window hides some.
        sink: sink tokens of the layer; None unless the metric needs them.
        region: patches that overlap the prompt's box; None unless the metric needs them.
    """

    visual: Bool[Tensor, "batch key"]
    n_visual: Int[Tensor, "batch"]
    sink: Bool[Tensor, "batch key"] | None = None
    region: Bool[Tensor, "batch key"] | None = None

    @property
    def nonsink(self) -> Bool[Tensor, "batch key"]:
        """Visual tokens that are no sinks."""
        assert self.sink is not None
        return self.visual & ~self.sink


@dataclass(frozen=True)
class Metric:
    """One way to score a head.

    Attributes:
        name: what users call it.
        meaning: in one line.
        source: paper, code, or our own.
        of: the score of every row, from the pattern and the key masks.
        needs_sinks: whether sink tokens must be known.
        needs_boxes: whether a box a prompt must be given.
        unit: what the number is, for axes.
    """

    name: str
    meaning: str
    source: str
    of: Callable[[Float[Tensor, "batch head row key"], KeyMasks], Float[Tensor, "batch head row"]]
    needs_sinks: bool = False
    needs_boxes: bool = False
    unit: str = "share of attention"


_BI = "Bi et al., CVPR 2025, arXiv:2412.18108"
_KANG = "Kang et al., ICLR 2025, arXiv:2503.03321"
_OURS = "our own formula; the paper's is not public"

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "visual_mass",
            "attention on the visual tokens",
            f"{_BI}, released code",
            lambda pattern, keys: kernels.mass(pattern, keys.visual),
        ),
        Metric(
            "nonsink_mass",
            "attention on the visual tokens that are no attention sinks",
            f"{_KANG}, section 2 of its method",
            lambda pattern, keys: kernels.mass(pattern, keys.nonsink),
            needs_sinks=True,
        ),
        Metric(
            "concentration",
            "how concentrated the attention within the image is: 0 even, 1 on one patch",
            f"{_BI} has an entropy-based score; {_OURS}",
            lambda pattern, keys: kernels.concentration(pattern, keys.visual, keys.n_visual),
            unit="concentration (0 even, 1 one patch)",
        ),
        Metric(
            "visual_preference",
            "visual mass times concentration",
            f"after {_BI}; {_OURS}",
            lambda pattern, keys: kernels.visual_preference(pattern, keys.visual, keys.n_visual),
            unit="mass x concentration",
        ),
        Metric(
            "region_mass",
            "attention on the patches that overlap a box",
            f"{_BI}, released code",
            lambda pattern, keys: kernels.mass(pattern, keys.region),
            needs_boxes=True,
        ),
    )
}


def metric_named(name: str) -> Metric:
    """The metric; ScoreError that lists them all if there is none of the name."""
    if name not in METRICS:
        raise ScoreError(unknown("metric", name, METRICS))
    return METRICS[name]
