"""What is shown beside attention: scores of a data set on the map of heads, and heads that are outlined."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import HookError, ScoreError
from ..hooks.heads import DECODER, VISION, HeadSet, check_part
from ..runs.files import check_same_model
from ..scoring import HEAD_METRICS, HeadScores
from .masses import Map
from .reading import ShownAttention

if TYPE_CHECKING:
    from ..lens import Lens


def check_mark(mark: HeadSet | None, lens: Lens | None, tower: bool) -> None:
    """HookError for heads to outline of another model, or of a part that is not shown."""
    if not tower:
        check_part(mark, DECODER, "a view without its vision tower (tower=True shows it)")
    if mark is None or lens is None:
        return
    part = lens.vision if mark.part == VISION else lens
    if (mark.n_layers, mark.n_heads) != (part.n_layers, part.n_heads):
        raise HookError(
            f"these heads to mark are of {mark.n_layers} layers x {mark.n_heads} heads, "
            f"the {'model' if mark.part == DECODER else 'vision tower'} has {part.n_layers} x {part.n_heads}"
        )


def map_of_scores(scores: HeadScores, lens: Lens, attention: ShownAttention) -> Map:
    """The mean scores as a map, the same for every query; ScoreError for those of another model."""
    part = lens.vision if scores.settings.get("part", DECODER) == VISION else lens
    if tuple(scores.values.shape) != (part.n_layers, part.n_heads):
        raise ScoreError(
            f"these scores of {scores.values.shape[0]} x {scores.values.shape[1]} heads are of another model\n"
            f"  scores: {scores.model.get('model', 'unknown')}, lens: {lens!r}"
        )
    if scores.model:  # scores that people made themselves say nothing
        check_same_model("this map of scores", scores.model, lens.identity)
    n = f"{scores.n_prompts} prompt{'s' if scores.n_prompts > 1 else ''}"
    chosen = scores.values.float().cpu()[list(attention.layers)][:, list(attention.heads)]
    return Map(
        "scores",
        f"scores: {scores.metric}",
        f"{_meaning(scores)}; mean of {n}, query {scores.query}",
        scores.unit,
        chosen.expand(len(attention.queries), -1, -1),
    )


def _meaning(scores: HeadScores) -> str:
    if scores.settings.get("part", DECODER) == VISION:
        return str(scores.settings.get("own_metric", {}).get("meaning", scores.metric))
    metric = HEAD_METRICS.get(scores.metric)
    return metric.meaning if metric else scores.metric
