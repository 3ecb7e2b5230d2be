"""Where a model's sinks are: which dimensions, which tokens of which layers, which places of the pictures, and whether
they are the vision tower's own outliers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import ModelError, ScoreError
from ..prompts.prompt import Prompt
from ..sinks import SinkReport
from ..sinks.vision import VisionSinks, find_vision_sinks
from ..statistics import mean_interval

if TYPE_CHECKING:
    from ..lens import Lens

COARSE = 8
"""Cells a side, where pictures have different grids of patches."""


def tokens_by_layer(report: SinkReport) -> list[dict[str, Any]]:
    """How many text and visual tokens are sinks, mean a prompt, by layer."""
    return [{str(key): value for key, value in row.items()} for row in report.per_layer().to_dict("records")]


def evidence(report: SinkReport) -> list[dict[str, Any]]:
    """Each candidate dimension with its largest ratios over the layers, and which rule names it."""
    candidates = dict.fromkeys((*report.dims, *report.dims_by_mean))
    return [
        {
            "dim": dim,
            "bos_over_rms": float(report.bos_ratio[:, dim].max()),
            "mean_over_median": float(report.mean_ratio[:, dim].max()),
            "by_bos": dim in report.dims,
            "by_mean": dim in report.dims_by_mean,
        }
        for dim in candidates
    ]


def places(report: SinkReport) -> Float[Tensor, "row column"] | None:
    """How often the patch at each place is a sink, over prompts and the layers that have sinks.

    Of the first picture of each prompt, on its own grid of patches, or on `COARSE` x `COARSE` cells where grids differ;
    None where no picture's patches have a grid, or there are no sinks.
    """
    if not report.layers:
        return None
    found: list[tuple[tuple[int, int], Tensor]] = []
    for prompt, sinks in zip(report.prompts, report.sinks, strict=True):
        for row, spans in enumerate(prompt.spans):
            span = next((each for each in spans if each.kind == "image" and each.grid is not None), None)
            if span is not None and span.grid is not None and len(span.positions) == span.grid[0] * span.grid[1]:
                share = sinks[row][list(report.layers)][:, list(span.positions)].double().mean(0)
                found.append((span.grid, share.reshape(span.grid)))
    if not found:
        return None
    if len({grid for grid, _ in found}) > 1:
        found = [((COARSE, COARSE), _coarse(share)) for _, share in found]
    return torch.stack([share for _, share in found]).nanmean(0)


def _coarse(share: Float[Tensor, "row column"]) -> Float[Tensor, "cell cell"]:
    return torch.nn.functional.adaptive_avg_pool2d(share[None], COARSE)[0]


def tower(lens: Lens, prompts: Sequence[Prompt], report: SinkReport) -> dict[str, Any]:
    """The vision tower's sinks beside the language model's.

    Returns:
        threshold; after_last (tokens a picture of outlying norm after the last layer); largest and median (norms
        there); rank, low, high: the mean share of patches with a smaller norm in the tower than the language model's
        visual sinks, .5 by chance; None where tower and language model do not have a token each for each
        patch. `note` says why something is missing.
    """
    try:
        each = [find_vision_sinks(lens, prompt) for prompt in prompts]
    except (ModelError, ScoreError) as error:
        return {"note": str(error).splitlines()[0]}
    last = torch.cat([found.norms[:, -1].flatten() for found in each])
    per_picture = torch.cat([found.sinks[:, -1].sum(-1).double() for found in each])
    found = {
        "threshold": each[0].threshold,
        "after_last": float(per_picture.mean()),
        "largest": float(last.max()),
        "median": float(last.median()),
    }
    ranks = [rank for i, sinks in enumerate(each) for rank in _ranks(report, i, sinks)]
    if not ranks:
        return {**found, "note": "no visual sinks, or no patch that is one token of both"}
    interval = mean_interval(torch.tensor(ranks))
    return {**found, "rank": float(interval.mean), "low": float(interval.low), "high": float(interval.high)}


def _ranks(report: SinkReport, prompt: int, tower: VisionSinks) -> list[float]:
    """Of each row with one picture: the mean rank of its sinks by their norm in the tower, 0 smallest, 1 largest."""
    own = report.prompts[prompt]
    visual = own.mask("visual")
    if own.n_rows != len(tower.norms) or not report.layers:
        return []
    found = []
    for row, norms in enumerate(tower.norms[:, -1]):
        positions = visual[row].nonzero().flatten()
        extra = len(norms) - len(positions)  # a class token stands first
        sinks = report.sinks[prompt][row][list(report.layers)][:, positions].any(0)
        if extra in (0, 1) and bool(sinks.any()) and len(positions) > 1:
            order = norms[extra:].argsort().argsort().double() / (len(positions) - 1)
            found.append(float(order[sinks].mean()))
    return found
