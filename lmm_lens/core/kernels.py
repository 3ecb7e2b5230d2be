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


class KeyWeights:
    """Keys in groups, as weights for two products.

    Attributes:
        sums: Float[batch, key, group], which add up what falls on each group.
        shares: Float[batch, group, key], which hand each group's share to its keys.
    """

    def __init__(self, sums: Tensor, shares: Tensor) -> None:
        self.sums, self.shares = sums, shares

    def of_first(self, n_keys: int) -> KeyWeights:
        """Those of the first keys alone."""
        if self.sums.shape[1] == n_keys:
            return self
        return KeyWeights(self.sums.narrow(1, 0, n_keys), self.shares.narrow(2, 0, n_keys))


class _Constants:
    """Tensors made once, by values, dtype and device; to a server, which may have other devices, none of them go."""

    made: dict[tuple[Any, torch.dtype, torch.device], Tensor]

    def __init__(self) -> None:
        self.made = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"made": {}}


_CONSTANTS = _Constants()


def constant(values: Any, like: Tensor) -> Tensor:
    """A number, or nested tuples of them, as a tensor that is made once, of the type and on the device of another.

    Of a Python number each operation would make one of its own.
    """
    if type(like) is not Tensor:  # the tensors of a simulation stay in it
        return torch.tensor(values, dtype=like.dtype, device=like.device)
    made = _CONSTANTS.made.get((values, like.dtype, like.device))
    return made_once(values, like.dtype, like.device) if made is None else made


def made_once(values: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The same of a given type on a given device."""
    key = values, dtype, device
    made = _CONSTANTS.made.get(key)
    if made is None:
        with torch.inference_mode(False):  # it may be used where gradients are recorded
            made = _CONSTANTS.made[key] = torch.tensor(values, dtype=dtype, device=device)
    return made


def mass(pattern: Pattern, keys: KeyMask) -> PerRow:
    """Attention that falls on the chosen keys, in [0, 1].

    Visual mass `A[l,h]` of Bi et al. (CVPR 2025, arXiv:2412.18108, released code) where the keys are the visual
    tokens; region mass where they are the patches that overlap a box; non-sink mass (Kang et al., ICLR 2025,
    arXiv:2503.03321) where they are the visual tokens that are no sinks.
    """
    return torch.bmm(_by_row(pattern), keys.to(pattern.dtype).unsqueeze(-1)).reshape(pattern.shape[:3])


def _by_row(pattern: Pattern) -> Float[Tensor, "batch row key"]:
    return pattern.reshape(pattern.shape[0], -1, pattern.shape[3])


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
    largest, norm = _largest_and_norm(resid, dims, eps)
    return largest * constant(resid.shape[-1] ** 0.5, norm) / norm


def is_sink(
    resid: Float[Tensor, "batch position d_model"], dims: tuple[int, ...], threshold: float, eps: float = 1e-6
) -> Bool[Tensor, "batch position"]:
    """Whether `sink_score` reaches a threshold: the same comparison, without its division."""
    if not dims:
        return resid.new_zeros(resid.shape[:-1], dtype=torch.bool)
    largest, norm = _largest_and_norm(resid, dims, eps)
    return largest >= norm * constant(threshold / resid.shape[-1] ** 0.5, norm)


def _largest_and_norm(resid: Tensor, dims: tuple[int, ...], eps: float) -> tuple[Tensor, Tensor]:
    """The largest of some dimensions, and the RMS times sqrt(d_model)."""
    x, width = resid.float(), resid.shape[-1]
    first, last = min(dims), max(dims)
    if {first, last} == {*dims}:  # one or two, as mostly: a part of x is had sooner than a copy
        chosen = x[..., first : last + 1 : max(1, last - first)]
    elif type(x) is Tensor:
        chosen = x.index_select(-1, made_once(dims, torch.long, x.device))
    else:
        chosen = x[..., list(dims)]
    # the root of the sum of squares and of width * eps
    norm = torch.hypot(torch.linalg.vector_norm(x, dim=-1), constant((width * eps) ** 0.5, x))
    return torch.linalg.vector_norm(chosen, torch.inf, -1), norm


def prominence(x: Float[Tensor, "batch position d_model"], dims: Sequence[int]) -> Float[Tensor, "batch position"]:
    """`max_{d in dims} |x[d]| / sqrt(mean_{d not in dims} x[d]^2 + 1e-6)`, in fp32; no limit above."""
    x = x.float()
    outside = torch.ones(x.shape[-1], dtype=torch.bool, device=x.device)
    outside[list(dims)] = False
    return x[..., list(dims)].abs().amax(-1) / x[..., outside].pow(2).mean(-1).add(1e-6).sqrt()


def redistribute(
    pattern: Pattern,
    groups: KeyWeights,
    transfer_fraction: float,
    min_nonsink_ratio: float,
    min_visual_mass: float,
    givers: KeyWeights | None = None,
) -> tuple[Pattern, tuple[Tensor, ...]]:
    """VAR of Kang et al. (ICLR 2025, arXiv:2503.03321), in the heads and rows that look at the image.

    What is chosen is known on the device alone, so all is done by arithmetic: rows that are not chosen get a change of
    0.

    Args:
        pattern: attention probabilities; where they are of the first keys alone, no row sees others.
        groups: keys by what happens to them, see `groups_of`.
        transfer_fraction: share taken from every sink.
        min_nonsink_ratio: of visual mass off the sinks, for a row to be chosen.
        min_visual_mass: for a row to be chosen.
        givers: the same with tokens that give in place of the sinks, for a control: the rows that the sinks choose, and
            as much mass as the sinks would give, or all that these tokens have.

    Returns:
        By which part of itself each weight grows, -1 for all of it; and numbers of the rows, Float[batch, head times
        query, ...], of which `moved_by` makes the mass that was moved.
    """
    by_row, groups = _by_row(pattern), groups.of_first(pattern.shape[3])
    sums = torch.bmm(by_row, groups.sums)  # batch row, visual nonsink sink
    # by how much it is above both limits, nonsink - rho * visual and visual - the least mass; what nonsinks and sinks
    # get for each of the nonsinks' mass
    weights = (-min_nonsink_ratio, 1.0, 0.0, 0.0), (1.0, 0.0, 0.0, -1.0), (0.0, 0.0, 1.0, 0.0)
    limits = 0.0, -min_visual_mass, 0.0, 0.0
    weight, limit, zero = constant((weights,), pattern), constant(((limits,),), pattern), constant(0.0, pattern)
    n_rows = sums.shape[0]
    numbers = torch.baddbmm(limit, sums, weight if n_rows == 1 else weight.expand(n_rows, -1, -1))
    acts = numbers.narrow(2, 0, 2).amin(2, keepdim=True).ge(zero)
    if givers is None:
        taken = sums.narrow(2, 1, 1).clamp_min(torch.finfo(pattern.dtype).tiny)
        # of the nonsinks, and -1 of the sinks
        shares = torch.where(acts, numbers.narrow(2, 2, 2) / taken, zero)
        factors = torch.baddbmm(zero, shares, groups.shares, beta=0, alpha=transfer_fraction)
        noted: tuple[Tensor, ...] = (sums, shares)
    else:
        factors, noted = _given_by_others(by_row, givers, sums, acts, transfer_fraction)
    return factors.reshape(pattern.shape), noted


def moved_by(transfer_fraction: float, *noted: Tensor) -> tuple[Tensor, ...]:
    """What `redistribute` noted of rows, as the mass moved in each, above 0 where it was chosen and had something to
    move; and with givers the mass that was to be moved and could not.
    """
    if len(noted) == 1:
        moved, wanted = noted[0].unbind(-1)
        return moved, moved, wanted - moved
    sums, shares = noted
    moved = -transfer_fraction * sums[..., 2] * shares[..., 1]
    return moved, moved


def _given_by_others(
    by_row: Tensor, givers: KeyWeights, sums: Tensor, acts: Tensor, transfer_fraction: float
) -> tuple[Tensor, tuple[Tensor, ...]]:
    least, givers = torch.finfo(by_row.dtype).tiny, givers.of_first(by_row.shape[2])
    wanted = sums.narrow(2, 2, 1) * acts * (sums.narrow(2, 1, 1) > 0) * transfer_fraction  # something has to take it
    _, taken, held = torch.bmm(by_row, givers.sums).split(1, -1)
    moved = torch.minimum(wanted, held) * (taken > 0)
    shares = torch.cat([moved / taken.clamp_min(least), -moved / held.clamp_min(least)], -1)
    return torch.bmm(shares, givers.shares), (torch.cat([moved, wanted], -1),)


def groups_of(visual: KeyMask, sink: KeyMask, dtype: torch.dtype) -> Float[Tensor, "batch 3 key"]:
    """Keys for `var_weights`: visual tokens; those of them that are no sinks; and sinks."""
    return torch.stack([visual, visual.gt(sink), sink], 1).to(dtype)  # gt: on, and no sink


def var_weights(groups: Float[Tensor, "batch 3 key"]) -> KeyWeights:
    """What `redistribute` adds up: visual, nonsink, sink; and to whom it gives: nonsinks, and to sinks a loss."""
    return KeyWeights(groups.transpose(1, 2), groups.narrow(1, 1, 2))


def knockout(pattern: Pattern, halves: KeyWeights) -> tuple[Pattern, Tensor]:
    """The masked softmax: no attention on the chosen keys, the rest renormalised; rows that see nothing else stay.

    Args:
        pattern: attention probabilities; where they are of the first keys alone, no row sees others.
        halves: the chosen keys and all others, see `halves_of`.

    Returns:
        By which part of itself each weight grows, -1 for all of it; and numbers of the rows, Float[batch, head times
        query, ...], of which `changed_by` tells which were changed.
    """
    by_row, halves = _by_row(pattern), halves.of_first(pattern.shape[3])
    sums = torch.bmm(by_row, halves.sums)  # batch row, chosen other
    shares = sums / sums.narrow(2, 1, 1).clamp_min(torch.finfo(pattern.dtype).tiny)  # what others get, and 1
    return torch.bmm(shares, halves.shares).reshape(pattern.shape), sums


def changed_by(sums: Tensor) -> tuple[Tensor, ...]:
    """Of what `knockout` or `scale` noted, the rows that saw chosen keys and others: above 0."""
    return (sums.amin(-1),)


def cut_by(sums: Tensor) -> tuple[Tensor, ...]:
    """The same, and the mass that was on the chosen keys of those rows."""
    (changed,) = changed_by(sums)
    return changed, sums[..., 0] * (changed > 0)


def halves_of(keys: KeyMask, dtype: torch.dtype) -> KeyWeights:
    """What `knockout` adds up: the chosen keys, all others; and to whom it gives: others, and to the chosen a loss."""
    halves = torch.stack([keys, ~keys, keys], 1).to(dtype)
    halves.select(1, 2).neg_()
    return KeyWeights(halves.narrow(1, 0, 2).transpose(1, 2), halves.narrow(1, 1, 2))


def scale(pattern: Pattern, halves: KeyWeights, factor: float, renormalise: bool = True) -> tuple[Pattern, Tensor]:
    """Attention on the chosen keys times a factor; rows with anything left brought back to their sum, if asked.

    Arguments and results as of `knockout`, which is a factor of 0.
    """
    if not factor and renormalise:
        return knockout(pattern, halves)
    by_row, halves = _by_row(pattern), halves.of_first(pattern.shape[3])
    sums = torch.bmm(by_row, halves.sums)
    if renormalise:
        on, off = sums.split(1, -1)
        back = (on + off) / (on * factor + off).clamp_min(torch.finfo(pattern.dtype).tiny)
        alone = off == 0  # a row that sees nothing else stays as it is, to the last bit
        shares = torch.cat([back - 1, 1 - back * factor], -1).masked_fill(alone, 0)
        growth = torch.bmm(shares, halves.shares)
    else:
        sums = sums.narrow(2, 0, 1)
        growth = (halves.shares.narrow(1, 1, 1) * (1 - factor)).expand(by_row.shape).contiguous()
    return growth.reshape(pattern.shape), sums


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
