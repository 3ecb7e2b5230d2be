"""The redistribution with the rows that it chose beside it."""

from torch import Tensor

from lmm_lens.core import kernels


def redistribute(*arguments, **settings) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The new pattern, which rows were chosen, what was moved, and what was to be moved."""
    edited, moved, wanted = kernels.redistribute(*arguments, **settings)
    return edited, moved > 0, moved, wanted
