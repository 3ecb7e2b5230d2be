"""What the kernels' edits make of a pattern, given masks over the keys."""

from torch import Tensor

from lmm_lens.core import kernels
from lmm_lens.core.kernels import groups_of, halves_of, moved_by, var_weights


def redistribute(pattern, visual, sink, transfer_fraction, *limits, givers=None, **named) -> tuple[Tensor, ...]:
    """The new pattern, which rows were chosen, what was moved, and what was to be moved."""
    groups = var_weights(groups_of(visual, sink, pattern.dtype))
    others = None if givers is None else var_weights(groups_of(visual, givers, pattern.dtype))
    growth, noted = kernels.redistribute(pattern, groups, transfer_fraction, *limits, givers=others, **named)
    moved, _, *short = (each.reshape(pattern.shape[:3]) for each in moved_by(transfer_fraction, *noted))
    wanted = moved + short[0] if short else transfer_fraction * noted[0][..., 1].reshape(pattern.shape[:3])
    return pattern + growth * pattern, moved > 0, moved, wanted


def knockout(pattern, keys) -> Tensor:
    """The new pattern."""
    return pattern + pattern * kernels.knockout(pattern, halves_of(keys, pattern.dtype))[0]


def scale(pattern, keys, factor, renormalise) -> Tensor:
    """The new pattern."""
    return pattern + pattern * kernels.scale(pattern, halves_of(keys, pattern.dtype), factor, renormalise)[0]
