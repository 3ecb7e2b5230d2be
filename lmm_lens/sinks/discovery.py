"""Discover a model's sink dimensions, threshold and sink tokens, with the evidence.

No table covers every model. Two rules look at the residual stream x that enters each layer:

1. by BOS: the k dimensions with the largest |x[d]| / rms at BOS (or the first token), averaged over the middle layers,
   k by the largest gap in the sorted ratios. They count as massive only if even the smallest of them stands out.
2. by mean: dimensions whose mean |x| over all tokens exceeds 5 times the median dimension's in most layers.

Both rules are ours, after what Kang et al. (ICLR 2025, arXiv:2503.03321) and Sun et al. (2024, arXiv:2402.17762)
describe. Which tokens stand out in these dimensions is decided in `threshold.py`; the paper's threshold is 20.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Literal, overload

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core.kernels import prominence, sink_score
from ..core.taps import TapContext, TapFunction
from ..errors import ScoreError, unknown
from ..hooks.heads import DECODER, VISION
from ..hooks.points import Read
from ..hooks.runner import Runner
from ..prompts.prompt import Prompt
from .rule import SinkRule
from .threshold import Scores, decide
from .vision import CLIP_NORM, VisionSinks, find_vision_sinks

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes


MIN_SHARE = 0.25  # of sqrt(d_model), the largest possible ratio: what BOS must reach on a massive dimension
MIN_GAP = 2.0  # factor between the last massive dimension and the next
TIMES_MEDIAN = 5.0  # of mean |x|, for the second rule
MAX_DIMS = 16


@dataclass(frozen=True, eq=False)
class SinkReport:
    """What was found, with the evidence.

    Attributes:
        dims: the sink dimensions, largest first; empty if the model shows no massive activation.
        dims_by_mean: what the second rule finds, for comparison.
        threshold: tau, in units of phi, between sink and ordinary tokens; infinite where there is none to be had.
        margin: phi of the strongest ordinary and of the weakest sink token, the edges of that gap.
        prominence: of the same two tokens, |x[d]| over the rms of all other dimensions, which unlike phi has no limit.
        layers: where there are sinks.
        missed: layers in which tokens stand out too, but less than ordinary tokens of other layers do, so that one
            threshold for all layers leaves them out.
        bos_ratio: |x[d]| / rms at the first token, mean over prompts.
        mean_ratio: mean |x[d]| over all tokens, over the median dimension's.
        prompts: the prompts that were looked at.
        sinks: for each prompt, which tokens of which layer are sinks.
        phi: for each prompt, the sink score of every token by layer; 0 without sink dimensions.
    """

    dims: tuple[int, ...]
    dims_by_mean: tuple[int, ...]
    threshold: float
    margin: tuple[float, float]
    prominence: tuple[float, float]
    layers: tuple[int, ...]
    missed: tuple[int, ...]
    bos_ratio: Float[Tensor, "layer d_model"]
    mean_ratio: Float[Tensor, "layer d_model"]
    prompts: tuple[Prompt, ...]
    sinks: tuple[Bool[Tensor, "batch layer position"], ...]
    phi: tuple[Float[Tensor, "batch layer position"], ...]

    def __bool__(self) -> bool:
        return bool(self.dims) and self.threshold < inf

    @property
    def rule(self) -> SinkRule:
        """The rule that scores and VAR use."""
        return SinkRule(self.dims, self.threshold, "find_sinks")

    def positions(self, layer: int, prompt: int = 0, row: int = 0, visual: bool | None = None) -> tuple[int, ...]:
        """Sink tokens of one layer and prompt row: all, or only visual (True) or text ones (False)."""
        mask = self.sinks[prompt][row, layer]
        if visual is not None:
            mask = mask & (self.prompts[prompt].mask("visual")[row] == visual)
        return tuple(mask.nonzero().flatten().tolist())

    def to_pandas(self) -> pandas.DataFrame:
        """The evidence: one row a layer and candidate dimension."""
        import pandas

        candidates = dict.fromkeys((*self.dims, *self.dims_by_mean))
        rows = [
            (layer, dim, float(self.bos_ratio[layer, dim]), float(self.mean_ratio[layer, dim]))
            for dim in candidates
            for layer in range(len(self.bos_ratio))
        ]
        return pandas.DataFrame(rows, columns=["layer", "dim", "bos_over_rms", "mean_over_median"])

    def per_layer(self) -> pandas.DataFrame:
        """How many text and visual tokens are sinks, mean a prompt row, by layer."""
        import pandas

        visual = torch.cat(
            [(s & p.mask("visual")[:, None]).sum(-1) for s, p in zip(self.sinks, self.prompts, strict=True)]
        )
        total = torch.cat([s.sum(-1) for s in self.sinks])
        counts = {
            "layer": range(total.shape[1]),
            "text": (total - visual).float().mean(0),
            "visual": visual.float().mean(0),
        }
        return pandas.DataFrame(counts)

    def plot(self, ax: Axes | None = None) -> Axes:
        """The ratio at BOS of every dimension by layer, the sink dimensions in colour."""
        from .figures import sink_evidence

        return sink_evidence(self, ax)

    def plot_over_image(self, layer: int, prompt: int = 0, row: int = 0, ax: Axes | None = None) -> Axes:
        """Where the visual sinks of a layer lie on the first picture of a prompt row, its phi laid over it.

        Raises:
            PromptError: the prompt was made from tensors, or its layout is unknown.
        """
        from .figures import sinks_over_image

        own = self.prompts[prompt]
        return sinks_over_image(
            own, self.phi[prompt][row, layer], self.positions(layer, prompt, row, True), layer, row, ax
        )

    def __repr__(self) -> str:
        if self.dims and not self:
            return (
                f"SinkReport: dimensions {list(self.dims)} are massive at the first token, but no threshold tells "
                f"sinks from ordinary tokens: the widest gap of |x[d]| / rms of the other dimensions is "
                f"{self.prominence[0]:.1f} to {self.prominence[1]:.1f}. VAR has nothing to redistribute."
            )
        if not self:
            largest = float(self.bos_ratio.max())
            return (
                "SinkReport: this model shows no massive activation: the largest |x[d]| / rms at the first token is "
                f"{largest:.1f} of at most {self.bos_ratio.shape[1] ** 0.5:.1f}. VAR has nothing to redistribute."
            )
        counts = self.per_layer().iloc[list(self.layers)][["text", "visual"]].mean()
        agree = "agrees" if set(self.dims) == set(self.dims_by_mean) else f"finds {list(self.dims_by_mean)}"
        return (
            f"SinkReport: dimensions {list(self.dims)} (the mean rule {agree}), threshold {self.threshold:.1f} between "
            f"ordinary tokens up to {self.margin[0]:.1f} and sinks from {self.margin[1]:.1f} "
            f"({self.prominence[0]:.0f} and {self.prominence[1]:.0f} times the other dimensions); "
            f"{counts['text']:.1f} text and {counts['visual']:.1f} visual sinks a prompt in layers {_runs(self.layers)}"
            + (f"; what stands out in layers {_runs(self.missed)} lies below it" if self.missed else "")
        )


def _runs(layers: Sequence[int]) -> str:
    """Layers in words: "2, 5 to 9"."""
    parts: list[list[int]] = []
    for layer in layers:
        if parts and layer == parts[-1][-1] + 1:
            parts[-1].append(layer)
        else:
            parts.append([layer])
    return ", ".join(f"{part[0]} to {part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


@overload
def find_sinks(
    lens: Runner,
    prompts: Prompt | Iterable[Prompt],
    dims: Sequence[int] | None = None,
    *,
    part: Literal["decoder"] = ...,
) -> SinkReport: ...


@overload
def find_sinks(lens: Runner, prompts: Prompt, *, part: Literal["vision"], norm: float = 100.0) -> VisionSinks: ...


def find_sinks(
    lens: Runner,
    prompts: Prompt | Iterable[Prompt],
    dims: Sequence[int] | None = None,
    *,
    part: str = DECODER,
    norm: float | None = None,
) -> SinkReport | VisionSinks:
    """Find the sink dimensions, the threshold and the sink tokens of a model.

    Two plain forwards a prompt. A handful of prompts with pictures is enough.

    Args:
        lens: the model.
        prompts: a prompt or several, each possibly a batch.
        dims: sink dimensions that are known; only the threshold and the tokens are looked for.
        part: "decoder", or "vision": tokens of the vision tower whose norm is an outlier (arXiv:2510.08510), on one
            prompt, in one forward; see `VisionSinks`.
        norm: of the tower, the norm from which on a token is a sink; 100 by default, which fits CLIP ViT-L.

    Returns:
        The report; it is falsy where the model shows no massive activation.

    Raises:
        ScoreError: no prompts, a dimension outside the model, or arguments that do not go with the part.
    """
    if part == VISION:
        if dims is not None or not isinstance(prompts, Prompt):
            raise ScoreError("sinks of the vision tower are told by their norm, without dims, on one prompt")
        return find_vision_sinks(lens, prompts, CLIP_NORM if norm is None else norm)
    if part != DECODER:
        raise ScoreError(unknown("part of the model", part, (DECODER, VISION)))
    if norm is not None:
        raise ScoreError('norm is of tokens of the vision tower: give part="vision" with it')
    listed = (prompts,) if isinstance(prompts, Prompt) else tuple(prompts)
    if not listed:
        raise ScoreError("no prompts were given: expected a Prompt or a non-empty list of them")
    bos_ratio, mean_ratio = _statistics(lens, listed)
    d_model = bos_ratio.shape[1]
    dims = _by_bos(bos_ratio) if dims is None else SinkRule(tuple(dims), 1e-6).checked(d_model).dims
    by_mean = _by_mean(mean_ratio)
    evidence = bos_ratio, mean_ratio, listed
    if not dims:
        none = tuple(torch.zeros(p.n_rows, lens.n_layers, p.n_tokens, dtype=torch.bool) for p in listed)
        phi = tuple(mask.float() for mask in none)
        return SinkReport((), by_mean, inf, (0.0, 0.0), (0.0, 0.0), (), (), *evidence, none, phi)
    phi, standing = zip(*(_scores(lens, prompt, dims) for prompt in listed), strict=True)
    found = decide(standing, phi, [p.mask("all") for p in listed], d_model)
    sinks = tuple((s >= found.threshold) & p.mask("all")[:, None] for s, p in zip(phi, listed, strict=True))
    gap = found.threshold, found.margin, found.prominence, found.layers, found.missed
    return SinkReport(dims, by_mean, *gap, *evidence, sinks, phi)


def _statistics(lens: Runner, prompts: tuple[Prompt, ...]) -> tuple[Tensor, Tensor]:
    """Both ratios, [layer, d_model]."""
    totals: dict[tuple[str, int], Tensor] = {}
    for prompt in prompts:
        sums = lens.run(prompt, read=[Read("resid_pre", reduce=_adding(prompt))], logits="last").sums
        for named, total in sums.items():
            totals[named] = totals.get(named, 0) + total.cpu()
    n_rows = sum(prompt.n_rows for prompt in prompts)
    layers = range(lens.n_layers)
    bos = torch.stack([totals["bos_ratio", layer] for layer in layers]) / n_rows
    mean = torch.stack([totals["abs", layer] for layer in layers])
    return bos.float(), (mean / mean.median(-1, keepdim=True).values.clamp_min(1e-30)).float()


def _adding(prompt: Prompt) -> TapFunction:
    """Add up |x| of all tokens, and |x| / rms of the first ones, where the model is."""
    real, bos = prompt.mask("all"), prompt.mask("bos")
    first = torch.where(bos.any(1, keepdim=True), bos, real & (real.cumsum(1) == 1))

    def add(resid: Tensor, context: TapContext) -> Tensor:
        x = resid.float().abs()
        at_first = first.to(x.device).gather(1, context.positions) & context.valid
        ratio = x / x.pow(2).mean(-1, keepdim=True).add(1e-6).sqrt()
        context.add("bos_ratio", ratio[at_first].sum(0).double())
        context.add("abs", x[context.valid].sum(0).double())
        return resid[..., :0]

    return add


def _by_bos(bos_ratio: Float[Tensor, "layer d_model"]) -> tuple[int, ...]:
    n_layers, d_model = bos_ratio.shape
    middle = bos_ratio[n_layers // 4 : max(n_layers // 4 + 1, -(-3 * n_layers // 4))].mean(0)
    values, order = middle.sort(descending=True)
    n = min(MAX_DIMS, d_model - 1)
    gaps = values[:n] / values[1 : n + 1].clamp_min(1e-6)
    k = int(gaps.argmax()) + 1
    massive = gaps[k - 1] >= MIN_GAP and values[0] >= MIN_SHARE * d_model**0.5
    return tuple(order[:k].tolist()) if massive else ()


def _by_mean(mean_ratio: Float[Tensor, "layer d_model"]) -> tuple[int, ...]:
    often = (mean_ratio > TIMES_MEDIAN).float().mean(0) > 0.5
    found = often.nonzero().flatten()
    return tuple(found[mean_ratio.mean(0)[found].argsort(descending=True)].tolist())


def _scores(lens: Runner, prompt: Prompt, dims: tuple[int, ...]) -> tuple[Scores, Scores]:
    """phi and prominence of every token and layer; 0 for padding."""

    def both(x: Tensor, context: TapContext) -> Tensor:
        return torch.stack([sink_score(x, dims), prominence(x, dims)], -1)

    reads = lens.run(prompt, read=[Read("resid_pre", reduce=both, name="phi")], logits="last")
    scores = torch.zeros(prompt.n_rows, lens.n_layers, prompt.n_tokens, 2)
    positions = reads.positions["phi"]
    batch, entry = (positions >= 0).cpu().nonzero(as_tuple=True)
    for layer in range(lens.n_layers):
        scores[batch, layer, positions[batch, entry].cpu()] = reads.reads["phi", layer][batch, entry].cpu()
    return scores[..., 0], scores[..., 1]
