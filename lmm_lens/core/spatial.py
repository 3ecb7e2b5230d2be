"""Attention as a map over the picture: components, spatial entropy, elbow. Imports torch and nothing of this library.

Shapes: maps are Float[*lead rows cols], one cell a patch, any leading dimensions; a batch of pictures with different
grids is padded with cells of 0, and `n_cells` says how many cells of each are real.

The definitions are those of Kang et al. (CVPR 2025, arXiv:2503.06287, "Your Large Vision-Language Model Only Needs A
Few Attention Heads For Visual Grounding"); its released code labels components with scipy, one map at a time.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .taps import TapContext

COMPONENT_THRESHOLD = 1e-3  # of attention above the map's mean, for a cell to belong to a component; the paper's
LOWEST = 10  # how many heads a prompt selects; the paper's number, of about a thousand heads
FEWEST = 3  # but no fewer, in models with few heads: as many as the paper localizes with


def as_maps(
    pattern: Float[Tensor, "batch head query key"], cells: Int[Tensor, "batch rows cols"]
) -> Float[Tensor, "batch head query rows cols"]:
    """The attention of each row as a map: cell (i, j) has that of key `cells[:, i, j]`, 0 where that is negative."""
    batch, n_heads, n_queries, _ = pattern.shape
    index = cells.clamp_min(0).flatten(1)[:, None, None].expand(batch, n_heads, n_queries, -1)
    weights = pattern.gather(-1, index).reshape(batch, n_heads, n_queries, *cells.shape[1:])
    return weights.masked_fill((cells < 0)[:, None, None], 0)


def at_cells(mask: Bool[Tensor, "batch key"], cells: Int[Tensor, "batch rows cols"]) -> Bool[Tensor, "batch rows cols"]:
    """Which cells of a map hold keys of the mask."""
    return mask.gather(1, cells.clamp_min(0).flatten(1)).reshape(cells.shape) & (cells >= 0)


def cell_keys(
    cells: Int[Tensor, "batch rows cols"], context: TapContext, n_keys: int
) -> Int[Tensor, "batch rows cols"]:
    """Positions as the keys that the layer holds now: a sliding window has dropped the first, which become negative."""
    return cells.to(context.positions.device) - max(0, context.n_seen - n_keys)


def components(mask: Bool[Tensor, "*lead rows cols"]) -> Int[Tensor, "*lead rows cols"]:
    """8-connected components of each map: one positive number a component, 0 outside.

    A component's number is the largest row-major index of its cells, plus one. Every cell starts with its own and takes
    over the largest among its neighbours; a cell also takes over what the cell that its number names has found, so that
    even a spiral is done in a few rounds.
    """
    rows, cols = mask.shape[-2:]
    flat = mask.reshape(-1, 1, rows, cols)
    found = torch.arange(1, rows * cols + 1, device=mask.device).reshape(rows, cols) * flat
    while True:
        # exact in fp32 up to 2 ** 24 cells; the pooling of integers is not implemented everywhere
        spread = torch.nn.functional.max_pool2d(found.float(), 3, stride=1, padding=1).long() * flat
        named = spread.flatten(2).gather(2, (spread.flatten(2) - 1).clamp_min(0)).reshape(spread.shape)
        spread = torch.maximum(spread, named * flat)
        if torch.equal(spread, found):
            return found.reshape(mask.shape)
        found = spread


def excess(
    maps: Float[Tensor, "*lead rows cols"], n_cells: Int[Tensor, "*#lead"] | None = None
) -> Float[Tensor, "*lead rows cols"]:
    """`B = relu(map - mean)`: what lies above the mean over the map's real cells."""
    n = maps.shape[-1] * maps.shape[-2] if n_cells is None else n_cells[..., None, None]
    return (maps - maps.sum((-2, -1), keepdim=True) / n).clamp_min(0)


def component_masses(
    maps: Float[Tensor, "*lead rows cols"], labels: Int[Tensor, "*lead rows cols"]
) -> Float[Tensor, "*lead label"]:
    """The sum of each component, at its number; entry 0 holds what lies in none."""
    n = maps.shape[-1] * maps.shape[-2]
    masses = maps.new_zeros(*maps.shape[:-2], n + 1)
    return masses.scatter_add(-1, labels.flatten(-2), maps.flatten(-2))


def spatial_entropy(
    maps: Float[Tensor, "*lead rows cols"],
    n_cells: Int[Tensor, "*#lead"] | None = None,
    threshold: float = COMPONENT_THRESHOLD,
) -> Float[Tensor, "*lead"]:
    """How many places a map is spread over, in nats: 0 = one blob, ln 2 = two of equal mass.

    `-sum_n p_n ln p_n` over the 8-connected components of `B > threshold`, `B = relu(map - mean)`, `p_n` the share of
    component n in sum(B). A map without components (even, or too faint) is inf, the least localised there is; released
    code gives inf only where B is 0, and 0, the best there is, where no cell exceeds the threshold.

    Args:
        maps: attention as maps, [*lead, rows, cols].
        n_cells: real cells of each map, where some only pad; all of them by default.
        threshold: as above.
    """
    above = excess(maps, n_cells)
    masses = component_masses(above, components(above > threshold))
    total, inside = masses.sum(-1, keepdim=True), masses[..., 1:]
    share = inside / torch.where(total > 0, total, torch.ones_like(total))
    entropy = -torch.special.xlogy(share, share).sum(-1)
    entropy = torch.where((inside > 0).any(-1), entropy, torch.full_like(entropy, torch.inf))
    return torch.where(maps.sum((-2, -1)).isnan(), torch.full_like(entropy, torch.nan), entropy)


def elbow(values: Float[Tensor, " n"]) -> float:
    """The value at the elbow of the sorted values: the one farthest from the chord of the curve.

    The chord joins the lowest and the highest value, each at its index in the sorted order. NaN is left out; with one
    or two values, or all of them on the chord, the lowest is returned. Code of the paper filters unsorted heads by the
    *index* of the elbow; this is its value, to be compared with values.
    """
    curve = values[~values.isnan()].double().sort().values
    n = len(curve)
    if n == 0:
        return float("nan")
    chord = torch.lerp(curve[:1], curve[-1:], torch.arange(n, device=curve.device).double() / max(n - 1, 1))
    away = (curve - chord).abs()  # distance to a line is the vertical one times a constant
    tolerance = 1e-6 * float(curve[-1] - curve[0])  # of a straight curve in fp32, rounding would choose
    return float(curve[int(away.argmax())] if float(away.max()) > tolerance else curve[0])


def localization(
    mass: Float[Tensor, "prompt layer head"], entropy: Float[Tensor, "prompt layer head"], lowest: int = LOWEST
) -> tuple[Float[Tensor, "prompt layer head"], float]:
    """Which heads each prompt selects as localization heads: 1 or 0, NaN for heads without a mass; and the threshold.

    Heads whose mean mass over the prompts reaches the elbow of all heads' stay. Of these a prompt selects the `lowest`
    with the lowest spatial entropy. Where fewer than `2 * lowest` stay it selects half, at least three; that is ours,
    since the paper's models have about a thousand heads. Heads that tie with the last one are all selected: on small
    maps many have exactly one component. A head whose map has no component (entropy inf) is never selected.

    Args:
        mass: visual mass.
        entropy: spatial entropy of the map.
        lowest: how many heads a prompt selects.

    Returns:
        The selection, whose mean over prompts is the paper's selection frequency, and the value at the elbow.
    """
    mean = mass.mean(0)
    threshold = elbow(mean.flatten())
    kept = mean >= threshold
    n = min(lowest, max(FEWEST, -(-int(kept.sum()) // 2)), entropy[0].numel())
    candidates = entropy.masked_fill(~kept | entropy.isnan(), torch.inf)
    last = candidates.flatten(1).sort(1).values[:, n - 1]
    selected = (candidates <= last[:, None, None]) & candidates.isfinite()
    return selected.to(mass.dtype).masked_fill(mean.isnan(), torch.nan), threshold


def smooth(maps: Float[Tensor, "*lead rows cols"], sigma: float) -> Float[Tensor, "*lead rows cols"]:
    """Gaussian smoothing, sigma in cells, edges mirrored; 0 leaves the maps alone. Equals scipy's gaussian_filter."""
    if sigma == 0:
        return maps
    rows, cols = (_blur(n, sigma).to(maps) for n in maps.shape[-2:])
    return rows @ maps @ cols.T


def _blur(n: int, sigma: float) -> Float[Tensor, "n n"]:
    """The smoothing of n cells in a row as a matrix."""
    reach = int(4 * sigma + 0.5)
    offset = torch.arange(-reach, reach + 1)
    weight = (-0.5 * (offset.double() / sigma) ** 2).exp()
    source = (torch.arange(n)[:, None] + offset) % (2 * n)  # mirrored: ... 1 0 | 0 1 ... n-1 | n-1 n-2 ...
    source = torch.where(source < n, source, 2 * n - 1 - source)
    matrix = torch.zeros(n, n, dtype=torch.float64)
    return matrix.scatter_add_(1, source, (weight / weight.sum()).expand(n, -1))


def bounds(mask: Bool[Tensor, "rows cols"]) -> tuple[int, int, int, int]:
    """The smallest rectangle of cells around the mask's: first row, first column, and one past the last of each."""
    across, down = mask.any(0).nonzero().flatten().tolist(), mask.any(1).nonzero().flatten().tolist()
    return down[0], across[0], down[-1] + 1, across[-1] + 1


def distance_of_keys(
    pattern: Float[Tensor, "row head query key"], centres: Float[Tensor, "row token 2"], at: Int[Tensor, "row query"]
) -> Float[Tensor, "row head query"]:
    """The mean distance of the keys that have a place, by their attention; NaN for queries that have none."""
    own = centres.gather(1, at.to(centres.device).clamp_min(0)[..., None].expand(-1, -1, 2))
    far = torch.cdist(own, centres[:, : pattern.shape[-1]])[:, None]
    weights = pattern.masked_fill(far.isnan(), 0)
    return (weights * far.nan_to_num()).sum(-1) / weights.sum(-1) + own.sum(-1)[:, None] * 0
