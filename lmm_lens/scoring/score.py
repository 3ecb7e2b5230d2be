"""Score all heads over many prompts, reduced on the spot: nothing larger than one row of attention is kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import ScoreError, unknown
from ..interventions.base import Intervention
from ..prompt import Prompt
from ..rows import bind_rows
from ..sinks import SinkRule, remembered, rule_for
from ..taps import ModelShape, Place, Tap
from .head_scores import HeadScores
from .metrics import KeyMasks, Metric, metric_named

if TYPE_CHECKING:
    from ..lens import Lens

QUERIES = {
    "last": "the last prompt token, whose output is the first generated token",
    "answer": "the first generated token, at its own decoding step",
}

BoxesOfRow = Sequence[float] | Sequence[Sequence[float]] | None


def score_heads(
    lens: Lens,
    prompts: Prompt | Iterable[Prompt],
    metric: str = "visual_mass",
    query: str = "last",
    *,
    boxes: Sequence[BoxesOfRow] | None = None,
    sink_dims: Sequence[int] | None = None,
    sink_threshold: float | None = None,
    interventions: Sequence[Intervention] = (),
    progress: bool = False,
) -> HeadScores:
    """Score every head of every layer on every prompt.

    Costs one plain forward a prompt (and one decoding step with query "answer"): probabilities are computed for the query
    row alone.

    Args:
        lens: the model.
        prompts: a prompt, or an iterable of them; each may be a batch. Put prompts of like length into one batch for speed.
        metric: "visual_mass", "nonsink_mass", "concentration", "visual_preference" or "region_mass"; `METRICS` has their
            meanings and sources.
        query: whose attention: "last", the last prompt token, or "answer", the first generated token at its decoding step
            (what the CVPR 2025 code does).
        boxes: for region_mass, one box (x0, y0, x1, y1) in pixels of the first picture, or a list of boxes, a batch row.
        sink_dims: for nonsink_mass, the sink dimensions; by default the model card's or the published ones.
        sink_threshold: for nonsink_mass, tau; by default the card's, or the paper's 20.
        interventions: edits under which the heads are scored.
        progress: show a progress bar.

    Returns:
        HeadScores with one row a prompt; NaN for layers without attention heads.

    Raises:
        ScoreError: unknown metric or query, no prompts, a prompt without visual tokens, boxes that do not match the
            prompts, or sink dimensions that are not known.
    """
    chosen = metric_named(metric)
    if query not in QUERIES:
        raise ScoreError(unknown("query", query, QUERIES))
    if chosen.needs_boxes != (boxes is not None):
        raise ScoreError(
            f"{metric} needs boxes=..., one entry a prompt row" if chosen.needs_boxes else f"{metric} takes no boxes"
        )
    rule = rule_for(lens.adapter.config, sink_dims, sink_threshold) if chosen.needs_sinks else None
    rows: list[Tensor] = []
    n_seen = 0
    for prompt in _shown(_listed(prompts), progress):
        check_visual(prompt, n_seen, metric)
        region = None
        if boxes is not None:
            region = region_mask(prompt, boxes[n_seen : n_seen + prompt.n_rows], n_seen)
        scorer = Scorer(chosen, query, rule, region)
        rows.append(scorer.score(lens, prompt, interventions))
        n_seen += prompt.n_rows
    if not rows:
        raise ScoreError("no prompts were given: expected a Prompt or a non-empty list of them")
    if boxes is not None and len(boxes) != n_seen:
        raise ScoreError(f"{len(boxes)} boxes were given for {n_seen} prompt rows: give one entry a row")
    settings = {"sink_dims": list(rule.dims), "sink_threshold": rule.threshold, "sinks": rule.source} if rule else {}
    return HeadScores(metric, query, torch.cat(rows), lens.identity, settings)


@dataclass(frozen=True)
class Scorer:
    """A metric on one prompt: reads the query row of every layer, with sinks and region as the metric needs them."""

    metric: Metric
    query: str
    rule: SinkRule | None = None
    region: Bool[Tensor, "batch position"] | None = None

    def taps(self, prompt: Prompt, shape: ModelShape) -> list[Tap]:
        """A read of the query row in each layer with heads, and of its sinks before it."""
        visual = prompt.mask("visual")

        def score(pattern: Tensor, place: Place) -> Tensor:
            def columns(mask: Tensor | None) -> Tensor | None:
                return None if mask is None else place.columns(mask, pattern.shape[-1])

            sinks = columns(remembered(place)) if self.rule else None
            seen = columns(visual)
            assert seen is not None
            return self.metric.of(pattern, KeyMasks(seen, n_visual.to(seen.device), sinks, columns(self.region)))

        rows = bind_rows(self.query, prompt)
        n_visual = visual.sum(1)
        layers = shape.self_attention
        taps = [Tap("pattern", layer, rows, score, name="score") for layer in layers]
        return taps + [self.rule.tap(prompt, layer) for layer in layers if self.rule]

    def score(
        self, lens: Lens, prompt: Prompt, interventions: Sequence[Intervention] = ()
    ) -> Float[Tensor, "batch layer head"]:
        """The scores of a prompt's rows, on the CPU."""
        if self.query == "last":
            reads = lens.run(prompt, interventions, [self], logits="last").reads
        else:  # two tokens: the second pass has the first of them as its query
            # no stop token, or a row that stops at once would have no answer; None means the model's own
            reads = lens.generate(prompt, interventions, [self], max_new_tokens=2, eos_token_id=[]).reads
        scores = torch.full((prompt.n_rows, lens.n_layers, lens.n_heads), torch.nan)
        for (_, layer), score in reads.items():
            scores[:, layer, : score.shape[1]] = score[:, :, 0].cpu()
        return scores


def region_mask(prompt: Prompt, boxes: Sequence[BoxesOfRow], n_before: int = 0) -> Bool[Tensor, "batch position"]:
    """The patches of each row's first picture that overlap its box, or any of its boxes.

    Raises:
        ScoreError: a row has no box, or one that covers no patch.
    """
    mask = torch.zeros_like(prompt.mask("visual"))
    for row, entry in enumerate(boxes):
        where = f"prompt row {n_before + row}"
        if not isinstance(entry, Sequence) or not entry:
            raise ScoreError(
                f"{where} has no box but {entry!r}\n"
                "  give one entry a row: (x0, y0, x1, y1) in pixels, or a list of such boxes"
            )
        for box in entry if isinstance(entry[0], Sequence) else [entry]:
            positions = prompt.positions_in_box(box, row=row)  # type: ignore[arg-type]
            if not positions:
                raise ScoreError(
                    f"the box {tuple(box)} of {where} covers no patch, so its mass would be 0 and mean nothing\n"  # type: ignore[arg-type]
                    "  boxes are in pixels of the picture as given; a centre crop may have cut this part away"
                )
            mask[row, list(positions)] = True
    return mask


def check_visual(prompt: Prompt, n_before: int, metric: str) -> None:
    """ScoreError for a row without visual tokens, whose score would be 0 and mean nothing."""
    if not isinstance(prompt, Prompt):
        raise ScoreError(f"expected prompts made by lens.prompt(...), given {type(prompt).__name__}")
    blind = (~prompt.mask("visual").any(1)).nonzero().flatten().tolist()
    if blind:
        raise ScoreError(
            f"prompt row {n_before + blind[0]} has no visual tokens, so its {metric} means nothing\n"
            "  leave text-only prompts out of the scoring"
        )


def _listed(prompts: Prompt | Iterable[Prompt]) -> Iterable[Prompt]:
    if not isinstance(prompts, (Prompt, Iterable)):
        raise ScoreError(f"expected prompts made by lens.prompt(...), given {type(prompts).__name__}")
    return [prompts] if isinstance(prompts, Prompt) else prompts


def _shown(prompts: Iterable[Prompt], progress: bool) -> Iterable[Prompt]:
    if not progress:
        return prompts
    from rich.progress import track

    return track(prompts, "scoring heads", transient=True)
