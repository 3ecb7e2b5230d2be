"""Discover a model's sink dimensions, threshold and sink tokens, with the evidence.

No table covers every model. Two rules look at the residual stream x that enters each layer:

1. by BOS: the k dimensions with the largest |x[d]| / rms at BOS (or the first token), averaged over the middle layers,
   k by the largest gap in the sorted ratios. They count as massive only if even the smallest of them stands out.
2. by mean: dimensions whose mean |x| over all tokens exceeds 5 times the median dimension's in most layers.

The threshold lies in the largest gap of phi between sink and ordinary tokens. Both rules are ours, after what Kang et
al. (ICLR 2025, arXiv:2503.03321) and Sun et al. (2024, arXiv:2402.17762) describe; the paper's threshold is 20.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core.kernels import sink_score
from ..core.taps import TapContext, TapFunction
from ..errors import ScoreError
from ..hooks.points import Read
from ..hooks.runner import Runner
from ..prompts.prompt import Prompt
from .rule import SinkRule

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes


MIN_SHARE = 0.25  # of sqrt(d_model), the largest possible ratio: what BOS must reach on a massive dimension
MIN_GAP = 2.0  # factor between the last massive dimension and the next
MIN_MARGIN = 1.5  # factor between the strongest ordinary token's phi and the weakest sink's
TIMES_MEDIAN = 5.0  # of mean |x|, for the second rule
MAX_DIMS = 16


@dataclass(frozen=True, eq=False)
class SinkReport:
    """What was found, with the evidence.

    Attributes:
        dims: the sink dimensions, largest first; empty if the model shows no massive activation.
        dims_by_mean: what the second rule finds, for comparison.
        threshold: tau in the middle (in log) of the gap between sink and ordinary tokens.
        margin: phi of the strongest ordinary and of the weakest sink token, the edges of that gap.
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
    bos_ratio: Float[Tensor, "layer d_model"]
    mean_ratio: Float[Tensor, "layer d_model"]
    prompts: tuple[Prompt, ...]
    sinks: tuple[Bool[Tensor, "batch layer position"], ...]
    phi: tuple[Float[Tensor, "batch layer position"], ...]

    def __bool__(self) -> bool:
        return bool(self.dims) and self.threshold < float("inf")

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
                f"sinks from ordinary tokens: the widest gap of phi is {self.margin[0]:.1f} to {self.margin[1]:.1f}. "
                "VAR has nothing to redistribute."
            )
        if not self:
            largest = float(self.bos_ratio.max())
            return (
                "SinkReport: this model shows no massive activation: the largest |x[d]| / rms at the first token is "
                f"{largest:.1f} of at most {self.bos_ratio.shape[1] ** 0.5:.1f}. VAR has nothing to redistribute."
            )
        counts = self.per_layer()[["text", "visual"]].mean()
        agree = "agrees" if set(self.dims) == set(self.dims_by_mean) else f"finds {list(self.dims_by_mean)}"
        return (
            f"SinkReport: dimensions {list(self.dims)} (the mean rule {agree}), threshold {self.threshold:.1f} between "
            f"ordinary tokens up to {self.margin[0]:.1f} and sinks from {self.margin[1]:.1f}; "
            f"{counts['text']:.1f} text and {counts['visual']:.1f} visual sinks a prompt and layer"
        )


def find_sinks(lens: Runner, prompts: Prompt | Iterable[Prompt]) -> SinkReport:
    """Find the sink dimensions, the threshold and the sink tokens of a model.

    Two plain forwards a prompt. A handful of prompts with pictures is enough.

    Args:
        lens: the model.
        prompts: a prompt or several, each possibly a batch.

    Returns:
        The report; it is falsy where the model shows no massive activation.

    Raises:
        ScoreError: no prompts.
    """
    listed = (prompts,) if isinstance(prompts, Prompt) else tuple(prompts)
    if not listed:
        raise ScoreError("no prompts were given: expected a Prompt or a non-empty list of them")
    bos_ratio, mean_ratio = _statistics(lens, listed)
    dims = _by_bos(bos_ratio)
    by_mean = _by_mean(mean_ratio)
    if not dims:
        none = tuple(torch.zeros(p.n_rows, lens.n_layers, p.n_tokens, dtype=torch.bool) for p in listed)
        phi = tuple(mask.float() for mask in none)
        return SinkReport((), by_mean, float("inf"), (0.0, 0.0), bos_ratio, mean_ratio, listed, none, phi)
    scores = [_scores(lens, prompt, dims) for prompt in listed]
    threshold, margin = _largest_gap(scores, [p.mask("all") for p in listed])
    if margin[1] < MIN_MARGIN * margin[0]:  # every token is alike on these dimensions: no threshold tells any apart
        threshold = float("inf")
    sinks = tuple((s >= threshold) & p.mask("all")[:, None] for s, p in zip(scores, listed, strict=True))
    return SinkReport(dims, by_mean, threshold, margin, bos_ratio, mean_ratio, listed, sinks, tuple(scores))


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


def _scores(lens: Runner, prompt: Prompt, dims: tuple[int, ...]) -> Float[Tensor, "batch layer position"]:
    """phi of every token and layer; 0 for padding."""
    reads = lens.run(
        prompt, read=[Read("resid_pre", reduce=lambda x, context: sink_score(x, dims), name="phi")], logits="last"
    )
    scores = torch.zeros(prompt.n_rows, lens.n_layers, prompt.n_tokens)
    positions = reads.positions["phi"]
    batch, entry = (positions >= 0).cpu().nonzero(as_tuple=True)
    for layer in range(lens.n_layers):
        scores[batch, layer, positions[batch, entry].cpu()] = reads.reads["phi", layer][batch, entry].cpu()
    return scores


def _largest_gap(scores: list[Tensor], real: list[Tensor]) -> tuple[float, tuple[float, float]]:
    """A threshold in the widest gap, as a ratio, of phi over all tokens and layers; below 1 nothing is massive."""
    values = torch.cat([s.movedim(1, 0)[:, r].flatten() for s, r in zip(scores, real, strict=True)])
    values = values.clamp_min(1.0).sort().values
    at = int((values[1:] / values[:-1]).argmax())
    low, high = float(values[at]), float(values[at + 1])
    return (low * high) ** 0.5, (low, high)
