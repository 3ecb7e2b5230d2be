"""Score all heads over many prompts, reduced on the spot: nothing larger than one row of attention is kept."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.measures import KeyMasks
from ..core.own import Keys
from ..core.sinks import sinks_of
from ..core.spatial import cell_keys
from ..core.taps import Tap, TapContext
from ..errors import ScoreError, unknown
from ..hooks.heads import DECODER, VISION
from ..hooks.points import ModelShape
from ..interventions.base import Intervention, checked_part
from ..prompts.prompt import MASKS, Prompt
from ..prompts.rows import bind_rows
from ..runs.checkpoint import Checkpoint, digest, fingerprint
from ..sinks.auto import Auto, rule_on
from ..sinks.rule import SinkRule
from .head_scores import HeadScores
from .localization import map_cells
from .metrics import HeadMetric, check_tokens
from .own import OwnMetric, about_own, check_finite, metric_of
from .regions import BoxesOfRow, Relevant, region_mask, relevant_mask
from .tower import score_tower

if TYPE_CHECKING:
    from ..lens import Lens

QUERIES = {
    "last": "the last prompt token, whose output is the first generated token",
    "answer": "the first generated token, at its own decoding step",
}


def score_heads(
    lens: Lens,
    prompts: Prompt | Iterable[Prompt],
    metric: str | HeadMetric | OwnMetric = "visual_mass",
    query: str = "last",
    *,
    boxes: Sequence[BoxesOfRow] | None = None,
    relevant: Relevant | None = None,
    sink_dims: Sequence[int] | Auto | None = None,
    sink_threshold: float | Auto | None = None,
    interventions: Sequence[Intervention] = (),
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = False,
    part: str = DECODER,
    sink_norm: float | None = None,
) -> HeadScores:
    """Score every head of every layer on every prompt.

    Costs one plain forward a prompt, and a decoding step with query "answer"; only the query row is computed again. A
    call also reads all weights once, to say which model its scores are of (`Lens.identity`, about a second for ten
    billion bytes, and once on a GPU), so give many prompts to one call.

    Args:
        lens: the model.
        prompts: a prompt, or an iterable of them; each may be a batch, faster with prompts of like length.
        metric: "visual_mass", "nonsink_mass", "nonsink_ratio", "concentration", "visual_preference", "region_mass",
            "retrieval_mass", "hit", "spatial_entropy", "localization", or one of these two with "nonsink_" before it;
            see `HEAD_METRICS`. `scores.top(n)` are the highest, of entropies the lowest. Or a function of your own,
            (pattern, keys) -> score, see `lmm_lens.scoring.own`; it scores layers of self-attention, and is given
            `keys.region` and `keys.sink` where boxes, relevant tokens or sink dimensions are given.
        query: whose attention: "last", the last prompt token, or "answer", the first generated token at its decoding
            step (what the CVPR 2025 code of visual mass does). The papers of hit and localization look at "last", the
            row whose output is the first answer token.
        boxes: for region_mass, hit and retrieval_mass, one box (x0, y0, x1, y1) in pixels of the first picture, or a
            list of boxes, a batch row. For hit, the box of the thing that the answer token names.
        relevant: for retrieval_mass, in place of boxes, the query-relevant visual tokens of each batch row: positions
            in the padded sequence, or Bool[position]. The sum is region_mass's, but over any visual tokens: of other
            pictures (`prompt.positions_in_box(box, image=1)`), of video, of models without a grid.
        sink_dims: for the nonsink metrics, the sink dimensions; by default the model card's or the published ones.
            "auto" discovers them with `find_sinks` on the first prompts, eight at most.
        sink_threshold: for the nonsink metrics, tau; by default the card's, or the paper's 20; or "auto".
        interventions: edits under which the heads are scored.
        checkpoint: a file for the prompts that are finished; the same call with the same file goes on where an earlier
            one ended. Without one, what a server has finished stays with the lens, so that the same call continues
            after a lost connection.
        progress: show a progress bar.
        part: "decoder", or "vision": heads of the vision tower by "entropy", "class_mass", "register_mass",
            "sink_mass", "distance" or, with boxes, "region_mass" of their patches (`lmm_lens.scoring.tower`); nothing
            else of what is above but interventions goes with it.
        sink_norm: for the tower's sink_mass, the norm from which on a token is a sink; 100 by default, which fits CLIP
            ViT-L; `find_sinks(part="vision")` shows them.

    Returns:
        HeadScores with one row a prompt; NaN for layers without attention heads. In cross-attention layers every key
        that a row sees is visual: its visual_mass is 1, and concentration tells heads apart. What asks for sinks,
        boxes, relevant tokens or maps is NaN there: these are made of tokens of the sequence.

    Raises:
        ScoreError: unknown metric or query, no prompts, a prompt without visual tokens, boxes or relevant tokens that
            do not match the prompts, sink dimensions that are not known, or no one grid where a map is needed.
    """
    if checked_part(part) == VISION:
        beside: dict[str, object] = {"relevant": relevant, "checkpoint": checkpoint}
        beside |= {"sink_dims": sink_dims, "sink_threshold": sink_threshold}
        given = [name for name, value in beside.items() if value is not None]
        if given or query != "last" or not isinstance(metric, str):
            what = given[0] if given else "query" if query != "last" else "a metric of your own"
            raise ScoreError(f"heads of the vision tower are scored without {what}")
        return score_tower(
            lens, _each(prompts, progress), metric, boxes=boxes, sink_norm=sink_norm, interventions=interventions
        )
    if sink_norm is not None:
        raise ScoreError('sink_norm is of tokens of the vision tower: give part="vision" with it')
    asks_for_sinks = not (sink_dims is None and sink_threshold is None)
    chosen = metric_of(metric, boxes is not None, relevant is not None, asks_for_sinks)
    if query not in QUERIES:
        raise ScoreError(unknown("query", query, QUERIES))
    check_tokens(chosen, boxes is not None, relevant is not None)
    if not chosen.needs_sinks and asks_for_sinks:
        raise ScoreError(f"{chosen.name} takes no sink_dims and no sink_threshold")
    rule: SinkRule | None = None
    if chosen.needs_sinks:
        rule, prompts = rule_on(lens, prompts, sink_dims, sink_threshold)
    about = {
        "metric": chosen.name if isinstance(metric, str) else [chosen.name, fingerprint(metric)],
        "query": query,
        "rule": [list(rule.dims), rule.threshold] if rule else None,
        "interventions": [fingerprint(intervention) for intervention in interventions],
    }
    finished = Checkpoint(lens, "head scores", about, checkpoint) if checkpoint or lens.remote else None
    model = lens.identity if finished is None else finished.model
    parts = score_parts(lens, prompts, chosen, query, boxes, relevant, rule, interventions, progress, finished)
    if finished is not None:
        finished.finish()
    per_prompt, found = chosen.combine(*parts) if chosen.combine else (parts[0], {})
    settings = {"sink_dims": list(rule.dims), "sink_threshold": rule.threshold, "sinks": rule.source} if rule else {}
    return HeadScores(chosen.name, query, per_prompt, model, settings | found | about_own(chosen))


def score_parts(
    lens: Lens,
    prompts: Prompt | Iterable[Prompt],
    metric: HeadMetric,
    query: str = "last",
    boxes: Sequence[BoxesOfRow] | None = None,
    relevant: Relevant | None = None,
    rule: SinkRule | None = None,
    interventions: Sequence[Intervention] = (),
    progress: bool = False,
    finished: Checkpoint | None = None,
) -> Float[Tensor, "part prompt layer head"]:
    """The scores that a metric is combined from, or its own as the one part; arguments as in `score_heads`."""
    scored: list[Tensor] = []
    n_seen = 0
    for prompt in _each(prompts, progress):
        check_visual(prompt, n_seen, metric.name)
        rows, region = slice(n_seen, n_seen + prompt.n_rows), None
        if boxes is not None:
            region = region_mask(prompt, boxes[rows], n_seen)
        elif relevant is not None:
            region = relevant_mask(prompt, relevant[rows], n_seen)
        cells = map_cells(prompt, n_seen) if metric.needs_grid else None
        name = f"prompt {len(scored)} {digest(prompt, region)}" if finished is not None else ""
        if finished is not None and name in finished:
            scored.append(finished[name])
        else:
            scorer = Scorer(metric.parts or (metric,), query, rule, region, cells)
            scored.append(scorer.score(lens, prompt, interventions))
            if metric.is_own:
                check_finite(metric, scored[-1], lens.shape.self_attention, lens.shape.n_heads, n_seen)
            if finished is not None:
                finished.put(**{name: scored[-1]})
        n_seen += prompt.n_rows
    if not scored:
        raise ScoreError("no prompts were given: expected a Prompt or a non-empty list of them")
    for what, named in (("boxes", boxes), ("entries of relevant", relevant)):
        if named is not None and len(named) != n_seen:
            raise ScoreError(f"{len(named)} {what} were given for {n_seen} prompt rows: give one entry a row")
    return torch.cat(scored, 1)


@dataclass(frozen=True)
class Scorer:
    """Metrics on one prompt: reads the query row of every layer, with sinks, region and map as they need them."""

    metrics: tuple[HeadMetric, ...]
    query: str
    rule: SinkRule | None = None
    region: Bool[Tensor, "batch position"] | None = None
    cells: Int[Tensor, "batch rows cols"] | None = None

    def taps(self, prompt: Prompt, shape: ModelShape) -> list[Tap]:
        """A read of the query row in each layer with heads, and of its sinks before it."""
        rows, layers = bind_rows(self.query, prompt), shape.self_attention
        own = any(metric.is_own for metric in self.metrics)
        of_tokens = own or any(m.needs_sinks or m.needs_boxes or m.needs_relevant or m.needs_grid for m in self.metrics)
        pictures = prompt.cross_keys
        crossing = [] if of_tokens or pictures is None else shape.crossing
        measures = [metric.of for metric in self.metrics if metric.of]
        visual, region, cells = prompt.mask("visual"), self.region, self.cells
        n_visual = visual.sum(1)
        sinks = self.rule.key if self.rule else None
        scopes = {name: bind_rows(name, prompt) for name in MASKS} if own else {}

        def score(pattern: Tensor, context: TapContext) -> Tensor:  # batch head query metric
            device, n_keys = pattern.device, pattern.shape[-1]
            if context.layer in crossing and pictures is not None:
                shown = torch.nn.functional.pad(pictures.to(device), (0, n_keys - pictures.shape[1]))
                keys = KeyMasks(shown, shown.sum(1))
                return torch.stack([measure(pattern, keys) for measure in measures], -1)
            keys = KeyMasks(context.columns(visual, n_keys), n_visual.to(device))
            if scopes:
                keys.named = Keys(context, n_keys, scopes)
            if sinks is not None:
                keys.sink = context.columns(sinks_of(context, sinks), n_keys)
            if region is not None:
                keys.region, keys.n_region = context.columns(region, n_keys), region.sum(1).to(device)
            if cells is not None:
                keys.cells, keys.n_cells = cell_keys(cells, context, n_keys), (cells >= 0).sum((1, 2)).to(device)
            return torch.stack([measure(pattern, keys) for measure in measures], -1)

        taps = [Tap("pattern", layer, rows, score, name="score") for layer in sorted([*layers, *crossing])]
        return taps + [self.rule.tap(prompt, layer) for layer in layers if self.rule]

    def score(
        self, lens: Lens, prompt: Prompt, interventions: Sequence[Intervention] = ()
    ) -> Float[Tensor, "metric batch layer head"]:
        """The scores of a prompt's rows, on the CPU."""
        if self.query == "last":
            reads = lens.run(prompt, interventions, [self], logits="last").reads
        else:  # the second pass has the first token as its query; no stop token, or a row could end before
            reads = lens.generate(prompt, interventions, [self], max_new_tokens=2, eos_token_id=[]).reads
        scores = torch.full((len(self.metrics), prompt.n_rows, lens.n_layers, lens.n_heads), torch.nan)
        alike: dict[tuple[int, torch.device], dict[int, Tensor]] = {}  # to be fetched from a device at once
        for (_, layer), score in reads.items():
            alike.setdefault((score.shape[1], score.device), {})[layer] = score[:, :, 0]
        for (n_heads, _), by_layer in alike.items():  # layer, batch head metric
            fetched = torch.stack([*by_layer.values()]).cpu()
            scores[:, :, [*by_layer], :n_heads] = fetched.permute(3, 1, 0, 2)
        return scores


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


def _each(prompts: Prompt | Iterable[Prompt], progress: bool) -> Iterable[Prompt]:
    """The prompts one by one, under a progress bar if asked."""
    if isinstance(prompts, Prompt):
        return [prompts]
    if not isinstance(prompts, Iterable):
        raise ScoreError(f"expected prompts made by lens.prompt(...), given {type(prompts).__name__}")
    if not progress:
        return prompts
    from rich.progress import track

    return track(prompts, "scoring heads", transient=True)
