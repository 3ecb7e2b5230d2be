"""The mathematics, as pure functions of tensors. Imports torch and nothing of this library.

Shapes: `pattern` is Float[batch, head, query, key], attention probabilities after the softmax, each row summing to
one; masks over keys are Bool[batch, key]. Every function acts on each row alone, so rows may come in any number,
one while decoding or thousands in a prefill.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Pattern = Float[Tensor, "batch head query key"]
PerRow = Float[Tensor, "batch head query"]
KeyMask = Bool[Tensor, "batch key"]


class _Constants:
    """Tensors made once, by value, dtype and device; to a server, which may have other devices, none of them go."""

    made: dict[tuple[float, torch.dtype, torch.device], Tensor]

    def __init__(self) -> None:
        self.made = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"made": {}}


_CONSTANTS = _Constants()


def constant(value: float, like: Tensor) -> Tensor:
    """A number as a tensor without dimensions, made once; of a Python number each operation makes one of its own."""
    key = value, like.dtype, like.device
    if type(like) is not Tensor:  # the tensors of a simulation stay in it
        return torch.tensor(value, dtype=like.dtype, device=like.device)
    if key not in _CONSTANTS.made:
        with torch.inference_mode(False):  # it may be used where gradients are recorded
            _CONSTANTS.made[key] = torch.tensor(value, dtype=like.dtype, device=like.device)
    return _CONSTANTS.made[key]


def mass(pattern: Pattern, keys: KeyMask) -> PerRow:
    """Attention that falls on the chosen keys, in [0, 1].

    Visual mass `A[l,h]` of Bi et al. (CVPR 2025, arXiv:2412.18108, released code) where the keys are the visual
    tokens; region mass where they are the patches that overlap a box; non-sink mass (Kang et al., ICLR 2025,
    arXiv:2503.03321) where they are the visual tokens that are no sinks.
    """
    (sums,) = _sums(_by_row(pattern), keys[:, None].to(pattern.dtype))
    return sums.reshape(pattern.shape[:3])


def _by_row(pattern: Pattern) -> Float[Tensor, "batch row key"]:
    return pattern.reshape(pattern.shape[0], -1, pattern.shape[3])


def _sums(by_row: Float[Tensor, "batch row key"], groups: Float[Tensor, "batch group key"]) -> tuple[Tensor, ...]:
    """What falls on each group of keys, Float[batch, row] a group, by one product."""
    return torch.bmm(by_row, groups.transpose(1, 2)).unbind(-1)


def concentration(pattern: Pattern, keys: KeyMask, n_keys: Int[Tensor, " batch"] | None = None) -> PerRow:
    """How concentrated the attention within the chosen keys is: 0 = spread evenly, 1 = all on one key.

    `1 - H(p) / ln n` with `p_j = a_j / A` over the n chosen keys and entropy H in nats; `n_keys` gives n where the
    layer holds only some. This formula is this library's own: the paper (Bi et al., CVPR 2025) has an entropy-based
    concentration whose exact form is not public. A row with no mass on the keys gives 0; a single key gives 1.
    """
    inside = pattern * keys[:, None, None].to(pattern.dtype)
    total = inside.sum(-1, keepdim=True)
    share = inside / torch.where(total > 0, total, torch.ones_like(total))
    entropy = -torch.special.xlogy(share, share).sum(-1)
    n = (keys.sum(-1) if n_keys is None else n_keys)[:, None, None].to(pattern.dtype)
    spread = entropy / n.log().clamp_min(torch.finfo(pattern.dtype).tiny)
    value = torch.where(n > 1, 1 - spread, torch.ones_like(spread)).clamp(0, 1)
    return torch.where(total.squeeze(-1) == 0, torch.zeros_like(value), value)


def visual_preference(pattern: Pattern, visual: KeyMask, n_visual: Int[Tensor, " batch"] | None = None) -> PerRow:
    """Visual mass times concentration, in [0, 1]. This library's own combination, not a paper's formula."""
    return mass(pattern, visual) * concentration(pattern, visual, n_visual)


def sink_score(
    resid: Float[Tensor, "batch position d_model"], dims: tuple[int, ...], eps: float = 1e-6
) -> Float[Tensor, "batch position"]:
    """phi of Kang et al. (ICLR 2025, arXiv:2503.03321): the largest sink dimension in units of the token's RMS.

    `max_{d in dims} |x[d]| / sqrt(mean_d x[d]^2 + eps)` in fp32 on the residual stream that enters a layer, before its
    normalisation. At most sqrt(d_model); 0 without dims.
    """
    if not dims:
        return resid.new_zeros(resid.shape[:-1], dtype=torch.float32)
    x, width = resid.float(), resid.shape[-1]
    largest = x.select(-1, dims[0]).abs()
    for d in dims[1:]:
        largest = torch.maximum(largest, x.select(-1, d).abs())
    norm = torch.linalg.vector_norm(x, dim=-1)
    # the root of the sum of squares and of width * eps, which is the RMS times sqrt(width)
    return largest * constant(width**0.5, x) / torch.hypot(norm, constant((width * eps) ** 0.5, x))


def prominence(x: Float[Tensor, "batch position d_model"], dims: Sequence[int]) -> Float[Tensor, "batch position"]:
    """`max_{d in dims} |x[d]| / sqrt(mean_{d not in dims} x[d]^2 + 1e-6)`, in fp32; no limit above."""
    x = x.float()
    outside = torch.ones(x.shape[-1], dtype=torch.bool, device=x.device)
    outside[list(dims)] = False
    return x[..., list(dims)].abs().amax(-1) / x[..., outside].pow(2).mean(-1).add(1e-6).sqrt()


def redistribute(
    pattern: Pattern,
    visual: KeyMask,
    sink: KeyMask,
    transfer_fraction: float,
    min_nonsink_ratio: float,
    min_visual_mass: float,
    givers: KeyMask | None = None,
) -> tuple[Pattern, PerRow, PerRow]:
    """VAR of Kang et al. (ICLR 2025, arXiv:2503.03321), in the heads and rows that look at the image.

    Args:
        pattern: attention probabilities.
        visual: visual tokens.
        sink: sink tokens, text and visual.
        transfer_fraction: share taken from every sink.
        min_nonsink_ratio: of visual mass off the sinks, for a row to be chosen.
        min_visual_mass: for a row to be chosen.
        givers: tokens that give in place of the sinks, for a control: the rows that the sinks choose, and as much mass
            as the sinks would give, or all that these tokens have.

    Returns:
        The new pattern; the mass moved in each row, above 0 where it was chosen and had something to move; and the
        mass that was to be moved: with givers in each row that the sinks chose, else in each row.
    """
    by_row, least = _by_row(pattern), torch.finfo(pattern.dtype).tiny
    groups = torch.stack([sink, visual.gt(sink), visual], 1).to(pattern.dtype)  # batch group key; gt: on, and no sink
    sink_mass, nonsink_mass, visual_mass = _sums(by_row, groups)
    wanted = sink_mass * constant(transfer_fraction, pattern)
    limit = (visual_mass * constant(min_nonsink_ratio, pattern)).clamp_min(least)  # something has to take it
    chosen = nonsink_mass >= limit
    if min_visual_mass > 0:
        chosen = chosen & (visual_mass >= constant(min_visual_mass, pattern))
    acts = chosen.to(pattern.dtype)  # from here on by arithmetic: what is chosen is known on the device alone
    if givers is None:
        taken, moved, loss = nonsink_mass, wanted * acts, acts * constant(-transfer_fraction, pattern)
    else:
        groups = torch.stack([givers, visual.gt(givers)], 1).to(pattern.dtype)
        held, taken = _sums(by_row, groups)
        wanted = wanted * acts
        moved = torch.minimum(wanted, held) * (taken > 0)
        loss = -moved / held.clamp_min(least)
    gain = moved / taken.clamp_min(least)
    # factors of [batch row key]: 1 elsewhere, less on those that give, more on the other visual tokens
    one = constant(1.0, pattern).reshape(1, 1, 1)
    factors = torch.baddbmm(one, torch.stack([loss, gain], -1), groups.narrow(1, 0, 2))
    by_head = pattern.shape[:3]
    return (by_row * factors).reshape(pattern.shape), moved.reshape(by_head), wanted.reshape(by_head)


def knockout(pattern: Pattern, keys: KeyMask) -> Pattern:
    """The masked softmax: no attention on the chosen keys, the rest renormalised; rows that see nothing else stay."""
    zero = constant(0.0, pattern)
    kept = torch.where(keys[:, None, None], zero, pattern)
    total = kept.sum(-1, keepdim=True)
    scale = pattern.sum(-1, keepdim=True) / total.clamp_min(torch.finfo(pattern.dtype).tiny)
    return torch.where(total > zero, kept * scale, pattern)


def scale(pattern: Pattern, keys: KeyMask, factor: float, renormalise: bool) -> Pattern:
    """Attention on the chosen keys times a factor; rows with anything left brought back to their sum, if asked."""
    scaled = torch.where(keys[:, None, None], pattern * constant(factor, pattern), pattern)
    if not renormalise:
        return scaled
    total = scaled.sum(-1, keepdim=True)
    back = pattern.sum(-1, keepdim=True) / total.clamp_min(torch.finfo(pattern.dtype).tiny)
    return torch.where(total > constant(0.0, pattern), scaled * back, pattern)


def uniform(visible: Bool[Tensor, "batch head query key"]) -> Pattern:
    """Even attention over the visible keys."""
    weights = visible.float()
    return weights / weights.sum(-1, keepdim=True).clamp_min(1)


def boost(pattern: Pattern, scores: Pattern, keys: KeyMask, alpha: float) -> Pattern:
    """Attention with scores e + alpha |e| on the chosen keys (PAI, arXiv:2407.21771).

    A softmax of scores raised by delta is the pattern times exp(delta), renormalised; so it composes with edits before.
    """
    raised = torch.where(keys[:, None, None] & (pattern > 0), alpha * scores.abs(), torch.zeros_like(scores))
    edited = pattern * (raised - raised.amax(-1, keepdim=True)).exp()
    return edited * (pattern.sum(-1, keepdim=True) / edited.sum(-1, keepdim=True))


def nonsink_ratio(pattern: Pattern, visual: KeyMask, sink: KeyMask) -> PerRow:
    """The share of visual mass that lies off the sinks, `r = sum_{V \\ K} a / sum_V a`, in [0, 1].

    VAR's selection ratio (Kang et al., ICLR 2025, arXiv:2503.03321): a head is edited where its visual mass reaches .2
    and r reaches rho. The ratio says nothing of how much a head looks: where the visual mass is tiny it is one rounding
    error over another, so rank by it only together with the mass. A row with no mass on the visual tokens gives 0, as
    such a row is never edited.
    """
    total = mass(pattern, visual)
    return (mass(pattern, visual & ~sink) / torch.where(total > 0, total, torch.ones_like(total))).clamp(max=1)


def hit(pattern: Pattern, region: KeyMask, n_region: Int[Tensor, " batch"] | None = None) -> PerRow:
    """`1 / |region|` where the most attended of *all* keys lies in the region, else 0.

    Hit score of SparseMM (arXiv:2506.05344), in {0, 1/|region|}: a small region that is hit counts more. Of equal keys
    the first is the most attended one. `n_region` gives |region| where the layer holds only some of its keys; a row
    whose region is empty gives 0.
    """
    largest, key = pattern.max(-1)
    inside = region[:, None, None].expand_as(pattern).gather(-1, key[..., None]).squeeze(-1)
    size = (region.sum(-1) if n_region is None else n_region)[:, None, None].clamp_min(1)
    score = inside.to(pattern.dtype) / size
    return torch.where(largest.isnan(), largest, score)
