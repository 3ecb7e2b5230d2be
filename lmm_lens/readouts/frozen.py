"""A normalisation with its scale frozen: the affine map that it is of one row.

    RMS:    norm(x) = s w x                s = 1 / rms(x), held at this row's
    layer:  norm(x) = s w (x - mean x) + b

w, b and s are read off the module itself by what it makes of chosen rows, so that it counts for nothing how a family
writes its norm (1 + w, no w, another eps). What is neither of the two is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..errors import ModelError

AGREES = 1e-4
"""Of the largest entry: how far the frozen map may lie from the module's own output, in fp32; more in fewer bits."""


@dataclass(frozen=True, eq=False)
class FrozenNorm:
    """What a normalisation is of some rows.

    Attributes:
        gain: Float[batch, d_model], s w.
        bias: Float[d_model].
        centred: whether the mean is taken away first.
    """

    gain: Float[Tensor, "batch d_model"]
    bias: Float[Tensor, " d_model"]
    centred: bool

    @classmethod
    def of(cls, norm: nn.Module | None, rows: Float[Tensor, "batch d_model"]) -> FrozenNorm:
        """That of a module at some rows, in fp64; the identity without one.

        Raises:
            ModelError: it is no RMS or layer normalisation.
        """
        x = rows.double()
        if norm is None:
            return cls(torch.ones_like(x), torch.zeros_like(x[0]), False)
        n = rows.shape[1]
        with torch.no_grad():
            ones = torch.ones(1, n, dtype=rows.dtype, device=rows.device)
            signs = ones.clone()
            signs[:, 1::2] = -1
            signs[:, n - n % 2 :] = 0
            # where the rows are: the module may lie elsewhere, and fetch what it is given
            bias, of_ones, of_signs = (
                norm(probe)[0].to(x.device).double() for probe in (torch.zeros_like(ones), ones, signs)
            )
            of_ones, of_signs = of_ones - bias, of_signs - bias
            out = norm(rows).to(x.device).double() - bias
        centred = bool(of_ones.abs().max() < 1e-2 * of_signs.abs().max())
        weight = of_signs * signs[0].double() if centred else of_ones
        basis = weight * (x - x.mean(-1, keepdim=True) if centred else x)
        scale = (out * basis).sum(-1, keepdim=True) / basis.square().sum(-1, keepdim=True).clamp_min(1e-300)
        away = (scale * basis - out).abs().amax()
        if away > tolerance(rows.dtype) * out.abs().amax():
            raise ModelError(
                f"{type(norm).__name__} is no RMS and no layer normalisation, so its scale cannot be frozen: with that "
                f"of its row it is {float(away):.3g} away from its own output"
            )
        return cls(scale * weight, bias, centred)

    def __call__(self, x: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch d_model"]:
        """What these rows' part of the sum becomes, without the bias."""
        return self.gain * (x - x.mean(-1, keepdim=True) if self.centred else x)

    def pulled(self, direction: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch d_model"]:
        """A direction of the output as one of the input, whose product with x is that of the former with its norm."""
        back = self.gain * direction
        return back - back.mean(-1, keepdim=True) if self.centred else back


def tolerance(dtype: torch.dtype) -> float:
    """How far numbers of a model of this precision may lie from one another, as a share of the largest."""
    return AGREES if dtype in (torch.float32, torch.float64) else 16 * torch.finfo(dtype).eps


def close(
    one: Float[Tensor, "batch d_model"], other: Float[Tensor, "batch d_model"], parts: Tensor, dtype: torch.dtype
) -> bool:
    """Whether two sums agree up to rounding, entry by entry.

    Args:
        one, other: the sums.
        parts: Float[batch, d_model], what their parts add up to without their signs.
        dtype: the model's.
    """
    eps = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)  # norms take their squares in fp32
    limit: Bool[Tensor, "batch d_model"] = (one - other).abs() <= (64 if eps < 1e-5 else 4) * eps * parts + 1e-12
    return bool(limit.all())
