"""Which tokens stand out, layer by layer, and one threshold that tells them from all others.

phi (Kang et al., ICLR 2025) divides by the rms of *all* dimensions, the massive one included, so it never exceeds
sqrt(d_model): an activation of 25,000 and one of 120 can read 23.8 and 18.5. What is decided here is decided on

    prominence = max_{d in dims} |x[d]| / rms of the dimensions outside dims

which has no such limit. In each layer alone the sinks are the few tokens above the lowest gap that is at least the
square root of the widest one, for sinks may lie further from each other than from all else. A layer without such a gap
has none, and all its tokens are ordinary. The threshold then lies above every ordinary token of every layer, in the
first gap there, and is given in units of phi, which is what scores and VAR compare. This rule is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt

import torch
from jaxtyping import Float
from torch import Tensor

MIN_GAP_IN_LAYER = 2.0  # factor between a layer's ordinary tokens and its sinks
MIN_MARGIN = 1.25  # factor between the most prominent ordinary token of all layers and the sinks above the threshold
MIN_SHARE = 0.25  # of sqrt(d_model): a token that is less prominent is none, whatever the others are

Scores = Float[Tensor, "batch layer position"]


@dataclass(frozen=True, eq=False)
class Decision:
    """What was decided.

    Attributes:
        threshold: tau in units of phi; infinite if no threshold tells sinks from ordinary tokens.
        margin: phi of the strongest token below and of the weakest above it; without one, the widest gap there is.
        prominence: the same two tokens' prominence.
        layers: layers with tokens above the threshold.
        missed: layers whose sinks, seen alone, stand out but lie below it.
    """

    threshold: float
    margin: tuple[float, float]
    prominence: tuple[float, float]
    layers: tuple[int, ...] = ()
    missed: tuple[int, ...] = ()


def decide(standing: Sequence[Tensor], phi: Sequence[Tensor], real: Sequence[Tensor], d_model: int) -> Decision:
    """One threshold for all layers.

    Args:
        standing: prominence of every token, one tensor [batch, layer, position] a prompt.
        phi: the sink score of the same tokens.
        real: Bool[batch, position] for each prompt, which tokens are not padding.
        d_model: width of the residual stream.
    """
    standing_of, phi_of = _by_layer(standing, real), _by_layer(phi, real)
    found = [lower_edge(values, MIN_SHARE * d_model**0.5) for values in standing_of]
    # the most prominent ordinary token of each layer; in a layer without sinks, of all its tokens
    ordinary = [float(values.max()) if edge is None else edge for values, edge in zip(standing_of, found, strict=True)]
    limit = max(ordinary)
    everything, phis = torch.cat(standing_of), torch.cat(phi_of)
    above = everything[everything > limit].sort().values
    steps = torch.cat([torch.tensor([limit]), above])
    wide = (steps[1:] / steps[:-1].clamp_min(1e-30) >= MIN_MARGIN).nonzero().flatten()
    if not len(wide):
        return Decision(inf, *_widest(phis, everything))
    high = float(above[int(wide[0])])
    is_sink = everything >= high
    low = float(everything[~is_sink].max())
    margin = float(phis[~is_sink].max().clamp_min(1.0)), float(phis[is_sink].min())
    if margin[0] >= margin[1]:  # several dimensions: phi, which divides by them, orders tokens otherwise
        return Decision(inf, *_widest(phis, everything))
    layers = tuple(i for i, values in enumerate(standing_of) if bool((values >= high).any()))
    missed = tuple(i for i, edge in enumerate(found) if edge is not None and i not in layers)
    return Decision(between(*margin, d_model), margin, (low, high), layers, missed)


def lower_edge(values: Float[Tensor, " token"], least: float) -> float | None:
    """Prominence of a layer's strongest ordinary token, if the few above it stand out: at most half of all."""
    ranked = values.clamp_min(1.0).sort().values
    gaps = ranked[1:] / ranked[:-1]
    half = len(ranked) // 2
    if not len(gaps[half:]):
        return None
    # sinks may lie further from each other than from all else: the first token beside some patches
    wide = gaps[half:] >= gaps[half:].max().sqrt().clamp_min(MIN_GAP_IN_LAYER)
    at = half + int(wide.int().argmax())
    stands_out = gaps[at] >= MIN_GAP_IN_LAYER and ranked[at + 1] >= least
    return float(values.sort().values[at]) if stands_out else None


def between(low: float, high: float, d_model: int) -> float:
    """The middle of two phi, by ratio of what they are without their limit: phi / sqrt(1 - phi^2 / d_model)."""
    a, b = (phi / max(1 - phi**2 / d_model, 1e-9) ** 0.5 for phi in (low, high))
    middle = sqrt(a * b)
    tau = middle / sqrt(1 + middle**2 / d_model)
    return tau if low < tau < high else sqrt(low * high)  # so near the limit that only rounding is left


def _by_layer(scores: Sequence[Tensor], real: Sequence[Tensor]) -> list[Float[Tensor, " token"]]:
    """Of each layer, the real tokens of all prompts."""
    layers = range(scores[0].shape[1])
    return [torch.cat([s[:, layer][r] for s, r in zip(scores, real, strict=True)]) for layer in layers]


def _widest(phi: Tensor, standing: Tensor) -> tuple[tuple[float, float], tuple[float, float]]:
    """The edges of the widest gap, by ratio, of each over all tokens and layers."""
    edges = []
    for values in (phi, standing):
        ranked = values.clamp_min(1.0).sort().values
        at = int((ranked[1:] / ranked[:-1]).argmax())
        edges.append((float(ranked[at]), float(ranked[at + 1])))
    return edges[0], edges[1]
