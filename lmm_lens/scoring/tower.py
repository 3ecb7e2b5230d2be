"""Scores of the vision tower's heads: what the patches attend to, one number a head and prompt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor

from ..core.columns import Grown
from ..core.spatial import distance_of_keys
from ..core.taps import Tap, TapContext
from ..errors import ScoreError, unknown
from ..hooks.points import ModelShape
from ..interventions.base import Intervention
from ..prompts.prompt import Prompt
from ..prompts.rows import bind_rows
from ..sinks.vision import CLIP_NORM
from .head_scores import HeadScores
from .regions import BoxesOfRow, region_mask
from .tower_places import TowerPlaces

if TYPE_CHECKING:
    from ..lens import Lens

TOWER_METRICS = {
    "entropy": ("entropy of a patch's attention", "entropy in nats", False),
    "class_mass": ("attention of patches on class tokens", "share of attention", True),
    "register_mass": ("attention of patches on register tokens", "share of attention", True),
    "sink_mass": (
        "attention of patches on tokens whose norm reaches `sink_norm` where they enter the layer (arXiv:2510.08510)",
        "share of attention",
        True,
    ),
    "distance": (
        "how far a patch looks: mean distance of the patches it attends to, weighted by their attention",
        "diagonals of the picture",
        True,
    ),
    "region_mass": ("attention of patches on the patches under the boxes", "share of attention", True),
}
"""What a head of the tower can be scored by: its meaning, its unit, whether high is what one looks for."""


@dataclass(frozen=True, eq=False)
class TowerScorer:
    """Reads the patches' attention in every layer of the tower, reduced to one number a row."""

    metric: str
    sink_norm: float
    places: TowerPlaces | None = None
    region: Bool[Tensor, "tower_row token"] | None = None
    in_tower = True

    def taps(self, prompt: Prompt, shape: ModelShape) -> list[Tap]:
        """On what the tower runs.

        Raises:
            ScoreError: there are no such tokens, or it is not known which are patches.
        """
        if "image" not in prompt.masks:
            raise ScoreError("it is not known which tokens of this vision tower are patches, so they cannot be scored")
        rows, norm = bind_rows("image", prompt), self.sink_norm
        wanted = {"class_mass": "class", "register_mass": "register"}.get(self.metric)
        if wanted is not None and not bool(prompt.mask(wanted).any()):
            raise ScoreError(f"this vision tower has no {wanted} tokens, so that {self.metric} is 0 for every head")
        others = self.region if wanted is None else prompt.mask(wanted)
        centres = None if self.places is None else self.places.centres
        by_norm = self.metric == "sink_mass"

        def score(pattern: Tensor, context: TapContext) -> Tensor:
            if by_norm:
                sinks = context.state.found_sinks["norm", context.layer].mask
                return (pattern * context.columns(sinks, pattern.shape[-1])[:, None, None]).sum(-1)
            if others is not None:
                return (pattern * context.columns(others, pattern.shape[-1])[:, None, None]).sum(-1)
            if centres is not None:
                return distance_of_keys(pattern, centres.to(pattern), context.positions)
            entropy: Tensor = -(pattern * pattern.clamp_min(1e-30).log()).sum(-1)
            return entropy

        def find(x: Tensor, context: TapContext) -> Tensor:
            found: Tensor = x.float().norm(dim=-1) >= norm
            context.state.found_sinks["norm", context.layer] = Grown(found)
            return found

        layers = range(shape.n_layers)
        every = bind_rows("all", prompt)
        norms = [Tap("resid_pre", layer, every, find) for layer in layers] if by_norm else []
        return norms + [Tap("pattern", layer, rows, score, name="tower score") for layer in layers]


def score_tower(
    lens: Lens,
    prompts: Prompt | Iterable[Prompt],
    metric: str = "entropy",
    *,
    sink_norm: float | None = None,
    boxes: Sequence[BoxesOfRow] | None = None,
    interventions: Sequence[Intervention] = (),
) -> HeadScores:
    """Score every head of the vision tower, the mean over the patches of all pictures of a prompt.

    Args:
        lens: the model.
        prompts: with pictures, one row each.
        metric: "entropy", "class_mass", "register_mass", "sink_mass", "distance" or "region_mass"; see `TOWER_METRICS`.
        sink_norm: for sink_mass, the norm from which on a token is a sink; 100 by default, which fits CLIP ViT-L.
        boxes: for region_mass, one box (x0, y0, x1, y1) in pixels of the first picture, or a list of boxes, a prompt.
        interventions: edits under which the heads are scored.

    Returns:
        HeadScores of the tower's layers and heads, `query` "patches".

    Raises:
        ScoreError: no such metric, no prompts, a batch, or a tower without such tokens.
        ModelError: the model has no vision tower with heads.
    """
    if metric not in TOWER_METRICS:
        raise ScoreError(unknown("metric of the vision tower", metric, TOWER_METRICS))
    if (boxes is not None) != (metric == "region_mass"):
        raise ScoreError("region_mass takes boxes, and no other metric of the vision tower does")
    if sink_norm is not None and metric != "sink_mass":
        raise ScoreError("sink_mass takes sink_norm, and no other metric of the vision tower does")
    norm = CLIP_NORM if sink_norm is None else float(sink_norm)
    meaning, unit, higher = TOWER_METRICS[metric]
    scored = []
    for number, prompt in enumerate([prompts] if isinstance(prompts, Prompt) else prompts):
        if prompt.n_rows != 1:
            raise ScoreError(f"prompt {number} has {prompt.n_rows} rows: give prompts of one row each")
        placed = TowerPlaces.of(lens, prompt) if metric in ("distance", "region_mass") else None
        scorer = TowerScorer(metric, norm, placed)
        if boxes is not None and placed is not None:
            region = region_mask(prompt, boxes[number : number + 1], number)[0]
            scorer = TowerScorer(metric, norm, None, placed.under(region))
        reads = lens.run(prompt, interventions, [scorer], logits="last").reads
        scores = torch.full((lens.vision.n_layers, lens.vision.n_heads), torch.nan)
        for (_, layer), score in reads.items():
            scores[layer, : score.shape[1]] = score.double().transpose(0, 1).flatten(1).nanmean(1).float().cpu()
        scored.append(scores)
    if boxes is not None and len(boxes) != len(scored):
        raise ScoreError(f"{len(boxes)} boxes were given for {len(scored)} prompts: give one entry a prompt")
    if not scored:
        raise ScoreError("no prompts were given: expected a Prompt or a non-empty list of them")
    settings: dict[str, Any] = {
        "part": "vision",
        "shape": [lens.vision.n_layers, lens.vision.n_heads],
        "own_metric": {"meaning": meaning, "unit": unit, "higher_is_better": higher},
    }
    if metric == "sink_mass":
        settings["sink_norm"] = norm
    return HeadScores(metric, "patches", torch.stack(scored), lens.identity, settings)
