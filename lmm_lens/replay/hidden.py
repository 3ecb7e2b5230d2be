"""Keys that copies of a prompt cannot attend to, beside what its own mask hides: the masked softmax of a knockout."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from ..core.attention import AttentionCall
from .check import UnfitError
from .variants import Variant
from .window import Window


def lost_keys(
    variants: Sequence[Variant], layer: int, recorded: AttentionCall, window: Window, rows: slice
) -> Bool[Tensor, "copy one_or_head row key"] | None:
    """The keys that rows of each copy lose in a layer, over all keys from the first token on; None where none does.

    A row that would lose all it sees keeps it, as under `Knockout`.

    Args:
        variants: one a copy.
        layer: number.
        recorded: its attention in the plain forward.
        window: of the replay.
        rows: the rows that are computed.

    Raises:
        UnfitError: attention that also goes to no key, of which a masked softmax would make another.
    """
    acting = [
        (copy, each)
        for copy, variant in enumerate(variants)
        for each in variant.hidden
        if layer in each.layers and bool(each.rows[rows].any())
    ]
    if not acting:
        return None
    if recorded.extra_logits is not None:
        raise UnfitError("its softmax has a logit without a key, whose share a knockout leaves as it is")
    keys = slice(window.first, window.stop)
    lost = torch.zeros(len(variants), 1, rows.stop - rows.start, window.stop - window.first, dtype=torch.bool)
    for copy, each in acting:
        lost[copy, 0] |= each.rows[rows].cpu()[:, None] & each.keys[keys].cpu()
    lost = lost.to(recorded.key.device)
    left = _visible(recorded, window, rows) & ~lost
    return lost & left.any(-1, keepdim=True)


def _visible(recorded: AttentionCall, window: Window, rows: slice) -> Bool[Tensor, "1 one_or_head row key"]:
    """Which keys, from the first token on, these rows see in the plain forward."""
    device = recorded.key.device
    if recorded.mask is None:
        row, key = torch.arange(rows.start, rows.stop), torch.arange(window.first, window.stop)
        seen = key <= row[:, None] if recorded.is_causal else torch.ones(len(row), len(key), dtype=torch.bool)
        return seen[None, None].to(device)
    mask = recorded.mask[min(window.row, len(recorded.mask) - 1), :, rows, window.first : window.stop]
    return (mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2)[None]


def without(mask: Tensor | None, lost: Bool[Tensor, "copy one_or_head row key"]) -> Tensor:
    """A mask [1 | head, row, key], True or 0 where visible or None, with keys hidden, one a copy."""
    if mask is None:
        return ~lost
    if mask.dtype == torch.bool:
        return mask & ~lost
    return mask[None].masked_fill(lost, torch.finfo(mask.dtype).min)
