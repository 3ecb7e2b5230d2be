"""What a head can be scored by. Each metric is a pure function of one query row's attention and of key masks.

One metric is more than that: "localization" is a choice among all heads, made from two scores of each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ..core import measures, spatial
from ..core.measures import KeyMasks, Pattern, PerRow
from ..errors import ScoreError, unknown

PerPrompt = Float[Tensor, "prompt layer head"]


@dataclass(frozen=True)
class HeadMetric:
    """One way to score a head.

    Attributes:
        name: what users call it.
        meaning: in one line.
        source: paper, code, or our own.
        of: the score of every row, from the pattern and the key masks; None where it is combined from `parts`.
        needs_sinks: whether sink tokens must be known.
        needs_boxes: whether a box a prompt must be given.
        needs_relevant: whether boxes or, instead, relevant tokens must be given.
        needs_grid: whether it must be known where each visual token lies in its picture.
        unit: what the number is, for axes.
        higher_is_better: whether the heads looked for are `HeadScores.top` (True) or `HeadScores.bottom`.
        parts: for a metric that compares heads or prompts with each other: the metrics it is combined from.
        combine: from the parts' scores [prompt, layer, head] to its own, and what settings it found.
        is_own: whether a user wrote it, so that what it returns is checked.
    """

    name: str
    meaning: str
    source: str
    of: Callable[[Pattern, KeyMasks], PerRow] | None = None
    needs_sinks: bool = False
    needs_boxes: bool = False
    needs_relevant: bool = False
    needs_grid: bool = False
    unit: str = "share of attention"
    higher_is_better: bool = True
    parts: tuple[HeadMetric, ...] = ()
    combine: Callable[..., tuple[PerPrompt, dict[str, Any]]] | None = None
    is_own: bool = False


def _localization(mass: PerPrompt, entropy: PerPrompt) -> tuple[PerPrompt, dict[str, Any]]:
    selected, threshold = spatial.localization(mass, entropy)
    n_kept = int((mass.mean(0) >= threshold).sum())
    return selected, {"min_mean_mass": threshold, "n_heads_above": n_kept}


_BI = "Bi et al., CVPR 2025, arXiv:2412.18108"
_KANG = "Kang et al., ICLR 2025, arXiv:2503.03321"
_LOCALIZATION = "Kang et al., CVPR 2025, arXiv:2503.06287"
_OURS = "our own formula; the paper's is not public"

_VISUAL_MASS = HeadMetric(
    "visual_mass",
    "attention on the visual tokens",
    f"{_BI}, released code",
    measures.visual_mass,
)
_NONSINK_MASS = HeadMetric(
    "nonsink_mass",
    "attention on the visual tokens that are no attention sinks",
    f"{_KANG}, section 2 of its method",
    measures.nonsink_mass,
    needs_sinks=True,
)
_MAP_ENTROPY = HeadMetric(
    "map_entropy",
    "spatial entropy, inf for a map without components",
    _LOCALIZATION,
    measures.map_entropy,
    needs_grid=True,
)
_NONSINK_MAP_ENTROPY = HeadMetric(
    "nonsink_map_entropy",
    "the same with the sinks cut out",
    _LOCALIZATION,
    measures.nonsink_map_entropy,
    needs_sinks=True,
    needs_grid=True,
)
_PLACES: dict[str, Any] = {"needs_grid": True, "unit": "nats (0 one place, ln 2 two)", "higher_is_better": False}
_CHOSEN: dict[str, Any] = {"needs_grid": True, "unit": "share of prompts that select the head"}

HEAD_METRICS: dict[str, HeadMetric] = {
    metric.name: metric
    for metric in (
        _VISUAL_MASS,
        _NONSINK_MASS,
        HeadMetric(
            "concentration",
            "how concentrated the attention within the image is: 0 even, 1 on one patch",
            f"{_BI} has an entropy-based score; {_OURS}",
            measures.image_concentration,
            unit="concentration (0 even, 1 one patch)",
        ),
        HeadMetric(
            "visual_preference",
            "visual mass times concentration",
            f"after {_BI}; {_OURS}",
            measures.preference,
            unit="mass x concentration",
        ),
        HeadMetric(
            "region_mass",
            "attention on the patches that overlap a box",
            f"{_BI}, released code",
            measures.region_mass,
            needs_boxes=True,
        ),
        HeadMetric(
            "nonsink_ratio",
            "the share of the visual mass that lies off the attention sinks: 0 all on sinks, 1 none",
            f"{_KANG}, the ratio by which VAR selects heads",
            measures.ratio_off_sinks,
            needs_sinks=True,
            unit="share of visual mass",
        ),
        HeadMetric(
            "hit",
            "1 / patches in the box whenever the most attended of all keys lies in the box",
            "SparseMM, arXiv:2506.05344, paper and released code",
            measures.region_hit,
            needs_boxes=True,
            unit="hits / patches in the box",
        ),
        HeadMetric(
            "retrieval_mass",
            "attention on the query-relevant visual tokens, named by boxes or as tokens",
            "Retrieval Attention Mass of CoRe heads, arXiv:2606.05843, after its abstract",
            measures.region_mass,
            needs_relevant=True,
        ),
        HeadMetric(
            "spatial_entropy",
            "over how many places of the first picture the attention is spread: 0 one; low is better",
            f"{_LOCALIZATION}; for maps without components our own value, ln of the number of patches",
            measures.bounded_entropy,
            **_PLACES,
        ),
        HeadMetric(
            "nonsink_spatial_entropy",
            "spatial entropy with the attention sinks cut out of the map; low is better",
            f"after {_LOCALIZATION}; our own combination with the sinks of {_KANG}",
            measures.nonsink_bounded_entropy,
            needs_sinks=True,
            **_PLACES,
        ),
        HeadMetric(
            "localization",
            "how often a head that looks at the image is among a prompt's lowest in spatial entropy",
            f"{_LOCALIZATION}, selection frequency",
            parts=(_VISUAL_MASS, _MAP_ENTROPY),
            combine=_localization,
            **_CHOSEN,
        ),
        HeadMetric(
            "nonsink_localization",
            "the same with the attention sinks cut out of the masses and the maps",
            f"after {_LOCALIZATION}; our own combination with the sinks of {_KANG}",
            parts=(_NONSINK_MASS, _NONSINK_MAP_ENTROPY),
            combine=_localization,
            needs_sinks=True,
            **_CHOSEN,
        ),
    )
}
"""What a head can be scored by, by the name that users call it."""


def head_metric(name: str) -> HeadMetric:
    """The metric; ScoreError that lists them all if there is none of the name."""
    if name not in HEAD_METRICS:
        raise ScoreError(unknown("metric", name, HEAD_METRICS))
    return HEAD_METRICS[name]


def check_tokens(metric: HeadMetric, has_boxes: bool, has_relevant: bool) -> None:
    """ScoreError unless the tokens that the metric needs are named, and no others."""
    if metric.needs_relevant and has_boxes == has_relevant:
        given = "both" if has_boxes else "neither"
        raise ScoreError(f"{metric.name} needs boxes=... or relevant=..., one entry a prompt row, given {given}")
    if not metric.needs_relevant and metric.needs_boxes != has_boxes:
        what = "needs boxes=..., one entry a prompt row" if metric.needs_boxes else "takes no boxes"
        raise ScoreError(f"{metric.name} {what}")
    if not metric.needs_relevant and has_relevant:
        raise ScoreError(f"{metric.name} takes no relevant tokens; retrieval_mass does")
