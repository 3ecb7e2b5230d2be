"""What a head can be scored by. Each metric is a pure function of one query row's attention and of key masks.

One metric is more than that: "localization" is a choice among all heads, made from two scores of each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .. import kernels, spatial
from ..errors import ScoreError, unknown

Pattern = Float[Tensor, "batch head row key"]
PerRow = Float[Tensor, "batch head row"]
PerPrompt = Float[Tensor, "prompt layer head"]


T = TypeVar("T")


def _known(x: T | None) -> T:
    """What the metric has said it needs."""
    assert x is not None
    return x


class KeyMasks(NamedTuple):
    """The keys a metric may ask about: masks are Bool[batch, key], and None unless the metric needs them.

    Attributes:
        visual: patch tokens of pictures and video frames.
        n_visual: how many of them the prompt row has, also where a sliding window hides some.
        sink: sink tokens of the layer.
        region: the tokens the user named: patches that overlap the prompt's boxes, or the relevant tokens.
        n_region: how many of them the prompt row has.
        cells: Int[batch, rows, cols], the keys of the first picture's patches as a map; negative where there is none.
        n_cells: how many patches that picture has.
    """

    visual: Bool[Tensor, "batch key"]
    n_visual: Int[Tensor, "batch"]
    sink: Bool[Tensor, "batch key"] | None = None
    region: Bool[Tensor, "batch key"] | None = None
    n_region: Int[Tensor, "batch"] | None = None
    cells: Int[Tensor, "batch rows cols"] | None = None
    n_cells: Int[Tensor, "batch"] | None = None

    @property
    def nonsink(self) -> Bool[Tensor, "batch key"]:
        """Visual tokens that are no sinks."""
        return self.visual & ~_known(self.sink)

    def without_sinks(self) -> KeyMasks:
        """The same keys with the sinks cut out of the visual tokens and of the map."""
        cells = _known(self.cells)
        sink = spatial.at_cells(_known(self.sink), cells)
        cells, n_cells = cells.masked_fill(sink, -1), _known(self.n_cells) - sink.sum((1, 2))
        return self._replace(visual=self.nonsink, cells=cells, n_cells=n_cells.clamp_min(1))


@dataclass(frozen=True)
class Metric:
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
    parts: tuple[Metric, ...] = ()
    combine: Callable[..., tuple[PerPrompt, dict[str, Any]]] | None = None


def _raw_entropy(pattern: Pattern, keys: KeyMasks) -> PerRow:
    """Spatial entropy, inf for a map without components."""
    return spatial.spatial_entropy(spatial.as_maps(pattern, _known(keys.cells)), _known(keys.n_cells)[:, None, None])


def _bounded(entropy: PerRow, keys: KeyMasks) -> PerRow:
    """Spatial entropy with ln n of a map's n cells in place of inf: more than any components can have."""
    return torch.where(entropy.isinf(), _known(keys.n_cells)[:, None, None].to(entropy.dtype).log(), entropy)


def _localization(mass: PerPrompt, entropy: PerPrompt) -> tuple[PerPrompt, dict[str, Any]]:
    selected, threshold = spatial.localization(mass, entropy)
    n_kept = int((mass.mean(0) >= threshold).sum())
    return selected, {"min_mean_mass": threshold, "n_heads_above": n_kept}


_BI = "Bi et al., CVPR 2025, arXiv:2412.18108"
_KANG = "Kang et al., ICLR 2025, arXiv:2503.03321"
_LOCALIZATION = "Kang et al., CVPR 2025, arXiv:2503.06287"
_OURS = "our own formula; the paper's is not public"

_VISUAL_MASS = Metric(
    "visual_mass",
    "attention on the visual tokens",
    f"{_BI}, released code",
    lambda pattern, keys: kernels.mass(pattern, keys.visual),
)
_NONSINK_MASS = Metric(
    "nonsink_mass",
    "attention on the visual tokens that are no attention sinks",
    f"{_KANG}, section 2 of its method",
    lambda pattern, keys: kernels.mass(pattern, keys.nonsink),
    needs_sinks=True,
)
_MAP_ENTROPY = Metric(
    "map_entropy", "spatial entropy, inf for a map without components", _LOCALIZATION, _raw_entropy, needs_grid=True
)
_NONSINK_MAP_ENTROPY = Metric(
    "nonsink_map_entropy",
    "the same with the sinks cut out",
    _LOCALIZATION,
    lambda pattern, keys: _raw_entropy(pattern, keys.without_sinks()),
    needs_sinks=True,
    needs_grid=True,
)
_PLACES: dict[str, Any] = {"needs_grid": True, "unit": "nats (0 one place, ln 2 two)", "higher_is_better": False}
_CHOSEN: dict[str, Any] = {"needs_grid": True, "unit": "share of prompts that select the head"}

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        _VISUAL_MASS,
        _NONSINK_MASS,
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
            lambda pattern, keys: kernels.mass(pattern, _known(keys.region)),
            needs_boxes=True,
        ),
        Metric(
            "nonsink_ratio",
            "the share of the visual mass that lies off the attention sinks: 0 all on sinks, 1 none",
            f"{_KANG}, the ratio by which VAR selects heads",
            lambda pattern, keys: kernels.nonsink_ratio(pattern, keys.visual, _known(keys.sink)),
            needs_sinks=True,
            unit="share of visual mass",
        ),
        Metric(
            "hit",
            "1 / patches in the box whenever the most attended of all keys lies in the box",
            "SparseMM, arXiv:2506.05344, paper and released code",
            lambda pattern, keys: kernels.hit(pattern, _known(keys.region), keys.n_region),
            needs_boxes=True,
            unit="hits / patches in the box",
        ),
        Metric(
            "retrieval_mass",
            "attention on the query-relevant visual tokens, named by boxes or as tokens",
            "Retrieval Attention Mass of CoRe heads, arXiv:2606.05843, after its abstract",
            lambda pattern, keys: kernels.mass(pattern, _known(keys.region)),
            needs_relevant=True,
        ),
        Metric(
            "spatial_entropy",
            "over how many places of the first picture the attention is spread: 0 one; low is better",
            f"{_LOCALIZATION}; for maps without components our own value, ln of the number of patches",
            lambda pattern, keys: _bounded(_raw_entropy(pattern, keys), keys),
            **_PLACES,
        ),
        Metric(
            "nonsink_spatial_entropy",
            "spatial entropy with the attention sinks cut out of the map; low is better",
            f"after {_LOCALIZATION}; our own combination with the sinks of {_KANG}",
            lambda pattern, keys: _bounded(_raw_entropy(pattern, keys.without_sinks()), keys),
            needs_sinks=True,
            **_PLACES,
        ),
        Metric(
            "localization",
            "how often a head that looks at the image is among a prompt's lowest in spatial entropy",
            f"{_LOCALIZATION}, selection frequency",
            parts=(_VISUAL_MASS, _MAP_ENTROPY),
            combine=_localization,
            **_CHOSEN,
        ),
        Metric(
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


def metric_named(name: str) -> Metric:
    """The metric; ScoreError that lists them all if there is none of the name."""
    if name not in METRICS:
        raise ScoreError(unknown("metric", name, METRICS))
    return METRICS[name]


def check_tokens(metric: Metric, has_boxes: bool, has_relevant: bool) -> None:
    """ScoreError unless the tokens that the metric needs are named, and no others."""
    if metric.needs_relevant and has_boxes == has_relevant:
        given = "both" if has_boxes else "neither"
        raise ScoreError(f"{metric.name} needs boxes=... or relevant=..., one entry a prompt row, given {given}")
    if not metric.needs_relevant and metric.needs_boxes != has_boxes:
        what = "needs boxes=..., one entry a prompt row" if metric.needs_boxes else "takes no boxes"
        raise ScoreError(f"{metric.name} {what}")
    if not metric.needs_relevant and has_relevant:
        raise ScoreError(f"{metric.name} takes no relevant tokens; retrieval_mass does")
