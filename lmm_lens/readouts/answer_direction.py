"""The direction of the residual stream that says an answer, with everything behind the layers held as it was.

    logit[a] - logit[b] = c (g . x + bias)

where x is the last layer's output at the last token, g = D (W_U[a] - W_U[b]) with the final norm D frozen at that row,
and c is the model's logit scale times the chord of its soft cap, cap(r) / r between the two answers' logits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .frozen import FrozenNorm
from .unembedding import Unembedding


@dataclass(frozen=True, eq=False)
class AnswerDirection:
    """Of each batch row, fp64.

    Attributes:
        direction: Float[batch, d_model], c g.
        bias: Float[batch], c times what the biases of norm and output embedding say.
        chord: Float[batch], what the soft cap makes of the difference, as a factor; 1 without a cap.
    """

    direction: Float[Tensor, "batch d_model"]
    bias: Float[Tensor, " batch"]
    chord: Float[Tensor, " batch"]

    @classmethod
    def of(
        cls, unembedding: Unembedding, rows: Float[Tensor, "batch d_model"], ids: Int[Tensor, "batch answer"]
    ) -> AnswerDirection:
        """That of the first answer against the second, if there is one.

        Args:
            unembedding: of the model.
            rows: the last layer's output, in the model's precision.
            ids: one token, or two, of each batch row.
        """
        frozen = FrozenNorm.of(unembedding.norm, rows)
        normed = rows if unembedding.norm is None else _quiet(unembedding.norm, rows)
        read = [_read_off(unembedding, normed, column) for column in ids.T]
        logits = [logit for logit, _, _ in read]
        slope, offset = read[0][1:]
        if len(read) > 1:
            slope, offset = slope - read[1][1], offset - read[1][2]
        factor = unembedding.scale or 1.0
        scaled = [factor * logit for logit in logits]
        chord = _chord(scaled, unembedding.cap)
        whole = (factor * chord)[:, None]
        bias = (slope * frozen.bias).sum(-1) + offset
        return cls(whole * frozen.pulled(slope), whole[:, 0] * bias, chord)


def _quiet(module: torch.nn.Module, rows: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = module(rows)
    return found.to(rows.device)


def _read_off(unembedding: Unembedding, normed: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(logit, its gradient, what is left of it at 0) of one token of each row, fp64: the row of W_U itself."""
    with torch.inference_mode(False), torch.enable_grad():
        x = normed.detach().clone().requires_grad_()
        hidden = x
        for module in (*unembedding.between, unembedding.head):
            hidden = module(hidden)
        logit = hidden.gather(1, ids.to(hidden.device)[:, None])[:, 0]
        (slope,) = torch.autograd.grad(logit.sum(), x)
    # the bias, which a product with the row of W_U leaves over
    bias = getattr(unembedding.head, "bias", None)
    offset = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    if bias is not None and not unembedding.between:
        offset = bias.detach().double().to(x.device)[ids.to(x.device)]
    return logit.detach().double().to(x.device), slope.double(), offset


def _chord(logits: list[Tensor], cap: float | None) -> Tensor:
    """capped difference / difference; the slope at the mean where the two are equal."""
    if cap is None:
        return torch.ones_like(logits[0])
    capped = [torch.tanh(logit / cap) * cap for logit in logits]
    one, two = (values[0] - (values[1] if len(values) > 1 else 0.0) for values in (logits, capped))
    middle = torch.stack(logits).mean(0)
    slope = 1 - torch.tanh(middle / cap) ** 2
    return torch.where(one.abs() > 1e-6 * cap, two / torch.where(one == 0, 1.0, one), slope)
