"""Localization heads: the few heads whose attention shows where the thing asked about is.

Kang et al., "Your Large Vision-Language Model Only Needs A Few Attention Heads For Visual Grounding" (CVPR 2025,
arXiv:2503.06287). At the last prompt token:

1. keep the heads whose visual mass, averaged over the prompts, reaches the elbow of the sorted masses of all heads;
2. for each prompt, select the ten of them whose map over the picture has the lowest spatial entropy;
3. the heads selected most often are the localization heads, and the sum of their maps shows the place.

A visual attention sink is one place too, so a head that parks on sinks passes for a localization head. `drop_sinks`
cuts the sinks out of masses and maps first; that is ours, not the paper's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from ..core import spatial
from ..core.sinks import sinks_of
from ..core.spatial import as_maps, at_cells, cell_keys
from ..core.taps import Tap, TapContext
from ..errors import PromptError, ScoreError
from ..hooks.heads import HeadSet, check_layer
from ..hooks.points import ModelShape
from ..prompts.prompt import Prompt
from ..prompts.rows import bind_rows
from ..prompts.spans import Box, Span
from ..sinks.auto import Auto, rule_on
from ..sinks.rule import SinkRule
from .metrics import HEAD_METRICS

if TYPE_CHECKING:
    from ..lens import Lens

COVERS = 0.9  # of all that the model sees of a picture, for one grid of patches to stand for the whole of it
ROUNDING = 1e-6  # of the largest attention: what an even map may differ by from its mean
PAPER_SIDE = 24  # patches a side of LLaVA-1.5, on which the paper smooths by one patch


def localization_heads(
    lens: Lens,
    prompts: Prompt | Iterable[Prompt],
    n: int = 3,
    *,
    layers: Iterable[int] | None = None,
    drop_sinks: bool = False,
    sink_dims: Sequence[int] | Auto | None = None,
    sink_threshold: float | Auto | None = None,
    progress: bool = False,
) -> HeadSet:
    """The n heads that prompts select most often as localization heads, best first.

    Ranked by selection frequency, the paper's choice: a mean of spatial entropies follows the few prompts on which a
    head's attention scatters, a frequency does not. Heads selected equally often are ranked by the lower mean spatial
    entropy. `score_heads(lens, prompts, "localization")` has the frequencies, with intervals. One forward a prompt.

    Args:
        lens: the model.
        prompts: questions about one thing in the first picture, such as "what color is the circle?"; the paper takes
            1,000. The heads are those that look at the place while answering *these*.
        n: how many; the paper takes 3.
        layers: only heads of these layers are returned; released code leaves out the first two.
        drop_sinks: cut the attention sinks out first.
        sink_dims, sink_threshold: as in `score_heads`, with drop_sinks.
        progress: show a progress bar.

    Raises:
        ScoreError: fewer than n heads were ever selected, or as in `score_heads`.
    """
    from .score import score_parts

    metric = HEAD_METRICS["nonsink_localization" if drop_sinks else "localization"]
    allowed = [check_layer(layer, lens.n_layers) for layer in (range(lens.n_layers) if layers is None else layers)]
    rule, prompts = _rule(lens, prompts, drop_sinks, sink_dims, sink_threshold)
    mass, entropy = score_parts(lens, prompts, metric, rule=rule, progress=progress)
    selected, threshold = spatial.localization(mass, entropy)
    frequency, spread = selected.mean(0), entropy.mean(0)
    found = [(layer, head) for layer, head in (frequency > 0).nonzero().tolist() if layer in allowed]
    if not 0 < n <= len(found):
        raise ScoreError(
            f"{n} localization heads were asked for, expected 1 to {len(found)}: so many were selected by any prompt\n"
            f"  to be selected, a head needs a mean mass of {threshold:.3f} on the picture, and a map with few places\n"
            "  ask for fewer; where sinks hold much of the mass, drop_sinks=True finds others"
        )
    best = sorted(found, key=lambda head: (-float(frequency[head]), float(spread[head])))
    return HeadSet(best[:n], lens.n_layers, lens.n_heads)


def localize(
    lens: Lens,
    prompt: Prompt,
    heads: Iterable[tuple[int, int]],
    *,
    row: int = 0,
    image: int = 0,
    sigma: float | None = None,
    drop_sinks: bool = False,
    sink_dims: Sequence[int] | Auto | None = None,
    sink_threshold: float | Auto | None = None,
) -> Box:
    """Where in a picture some heads look from the last prompt token: a box in pixels of the picture as given.

    The heads' maps are summed and smoothed; the box encloses that connected place above the mean which has the most
    attention above it. Released code encloses all cells above the mean; the one place is ours.

    Args:
        lens: the model.
        prompt: a question about one thing in the picture.
        heads: from `localization_heads`, or any (layer, head) pairs.
        row: which row of the prompt, if it is a batch.
        image: which picture of that row.
        sigma: of the Gaussian smoothing, in patches; 0 for none. By default one 24th of the grid's shorter side: the
            paper's code smooths by one patch of 24 x 24.
        drop_sinks: cut the attention sinks out of the maps first.
        sink_dims, sink_threshold: as in `score_heads`, with drop_sinks.

    Raises:
        ScoreError: the picture is no single grid of patches, no heads were given, a head's keys are not the sequence,
            or no place stands out in the picture.
        HookError: the model has no such head.
    """
    if not 0 <= row < prompt.n_rows:
        raise PromptError(f"row {row} is out of range: the prompt has rows 0 to {prompt.n_rows - 1}")
    span = map_span(prompt, row, f"row {row}", image)
    assert span.grid is not None
    cells = torch.tensor(span.positions).reshape(1, *span.grid).expand(prompt.n_rows, -1, -1)
    rule, _ = _rule(lens, prompt, drop_sinks, sink_dims, sink_threshold)
    reader = MapReader(HeadSet(heads, lens.n_layers, lens.n_heads), cells, rule)
    reads = lens.run(prompt, read=[reader], logits="last").reads.values()
    total = torch.stack([maps[row].sum((0, 1)).cpu() for maps in reads]).sum(0)
    width = min(span.grid) / PAPER_SIDE if sigma is None else float(sigma)
    above = spatial.excess(spatial.smooth(total, width))
    places = spatial.components(above > ROUNDING * total.max())
    masses = spatial.component_masses(above, places)[1:]
    if not bool((masses > 0).any()):
        raise ScoreError(
            f"no place stands out: {reader.heads} attend evenly to image {image} of row {row}, or not at all"
        )
    top, left, bottom, right = spatial.bounds(places == masses.argmax() + 1)
    first, last = span.positions[top * span.grid[1] + left], span.positions[(bottom - 1) * span.grid[1] + right - 1]
    return _in_picture(Box(*span.box(first)[:2], *span.box(last)[2:]), prompt, row, image)


def _rule(
    lens: Lens,
    prompts: Prompt | Iterable[Prompt],
    drop_sinks: bool,
    sink_dims: Sequence[int] | Auto | None,
    sink_threshold: float | Auto | None,
) -> tuple[SinkRule | None, Prompt | Iterable[Prompt]]:
    if drop_sinks:
        return rule_on(lens, prompts, sink_dims, sink_threshold)
    if sink_dims is not None or sink_threshold is not None:
        raise ScoreError("sink_dims and sink_threshold say which sinks to cut out: give them with drop_sinks=True")
    return None, prompts


def _in_picture(box: Box, prompt: Prompt, row: int, image: int) -> Box:
    """The box cut to the picture; patches may reach over its edge into padding."""
    if not prompt.images[row]:
        return box
    picture = Box(0, 0, *prompt.images[row][image].size)
    if not box.overlaps(picture):
        raise ScoreError(f"the heads look at padding beside image {image} of row {row}, at {tuple(box)}")
    return Box(max(box.x0, 0), max(box.y0, 0), min(box.x1, picture.x1), min(box.y1, picture.y1))


@dataclass(frozen=True)
class MapReader:
    """Reads some heads' maps at the last prompt token: `run.reads["map", layer]`, [batch, head, 1, rows, cols]."""

    heads: HeadSet
    cells: Int[Tensor, "batch rows cols"]
    rule: SinkRule | None = None

    def taps(self, prompt: Prompt, shape: ModelShape) -> list[Tap]:
        """A read in each of the heads' layers, and of its sinks before it if they are cut out."""
        if not self.heads:
            raise ScoreError("no heads were given: expected (layer, head) pairs, as localization_heads returns them")
        wrong = [layer for layer in self.heads.by_layer() if layer not in shape.self_attention]
        if wrong:
            raise ScoreError(f"the heads of layers {wrong} do not attend to the sequence, so they have no map over it")

        at, sinks = self.cells, self.rule.key if self.rule else None

        def read(pattern: Tensor, context: TapContext) -> Tensor:  # batch head query rows cols
            cells = cell_keys(at, context, pattern.shape[-1])
            if sinks is not None:
                sink = context.columns(sinks_of(context, sinks), pattern.shape[-1])
                cells = cells.masked_fill(at_cells(sink, cells), -1)
            return as_maps(pattern, cells)

        rows = bind_rows("last", prompt)
        by_layer = self.heads.by_layer()
        taps = [Tap("pattern", layer, rows, read, heads, name="map") for layer, heads in by_layer.items()]
        return taps + [self.rule.tap(prompt, layer) for layer in by_layer if self.rule]


# ---------------------------------------------------------------------- the grid of a picture


def map_span(prompt: Prompt, row: int, where: str, image: int = 0) -> Span:
    """The run of visual tokens that covers a whole picture as one grid; the finest, where several do.

    Raises:
        ScoreError: no such picture, its layout is not known, or its tiles cover only parts of it.
    """
    spans = [span for span in prompt.spans[row] if span.kind == "image" and span.image == image]
    if not spans:
        known = sorted({span.image for span in prompt.spans[row] if span.kind == "image" and span.image is not None})
        raise ScoreError(f"{where} has no image {image} to make a map of: its images are {known or 'not told apart'}")
    regions = [span.region for span in spans if span.grid is not None and span.region is not None]
    if len(regions) < len(spans):
        raise ScoreError(
            f"the layout of the visual tokens of {where} is not known, so their attention is no map\n"
            "  the model's family has no adapter with a grid; visual_mass and concentration need none"
        )
    whole = Box(*(min(r[i] for r in regions) for i in (0, 1)), *(max(r[i] for r in regions) for i in (2, 3)))
    covering = [span for span, region in zip(spans, regions, strict=True) if _area(region) >= COVERS * _area(whole)]
    if not covering:
        raise ScoreError(
            f"image {image} of {where} is cut into {len(spans)} tiles and none covers the whole of it, so there is no "
            "one map\n  use a processor setting with a thumbnail or a single tile"
        )
    return max(covering, key=len)


def _area(box: Box) -> float:
    return (box.x1 - box.x0) * (box.y1 - box.y0)


def map_cells(prompt: Prompt, n_before: int = 0) -> Int[Tensor, "batch rows cols"]:
    """The positions of each row's first picture as a map; -1 where its grid is smaller than others of the batch."""
    spans = [map_span(prompt, row, f"prompt row {n_before + row}") for row in range(prompt.n_rows)]
    grids = [span.grid or (0, 0) for span in spans]
    cells = torch.full((len(spans), max(g[0] for g in grids), max(g[1] for g in grids)), -1)
    for row, (span, (rows, cols)) in enumerate(zip(spans, grids, strict=True)):
        cells[row, :rows, :cols] = torch.tensor(span.positions).reshape(rows, cols)
    return cells
