"""A residual stream as words, reduced on the spot: of each row's logits the best few, chosen ones, and two numbers.

Rows are taken a few at a time, as many as their logits fit into about the room of the pass's own residual stream, so
that [layer, position, vocabulary] never exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import ModelError
from .unembedding import Unembedding

if TYPE_CHECKING:
    from .translators import Translators

LEAST, MOST = 2**21, 2**26
"""Logits held at once: at least, and at most."""


@dataclass(frozen=True, eq=False)
class WordReader:
    """Turns rows of `resid_post` into numbers, packed side by side: see `columns`.

    Attributes:
        unembedding: of the model.
        top: how many of the best words are kept.
        tokens: whose logits and ranks are kept.
        d_model: the width that a row must have.
        translators: what a row goes through first, if anything.
    """

    unembedding: Unembedding
    top: int
    tokens: tuple[int, ...]
    d_model: int
    translators: Translators | None = None

    @property
    def columns(self) -> dict[str, slice]:
        """Where each number stands: `ids` and `logits` of the best words, `log_sum` of all exponentials, `entropy` in
        nats, `chosen` logits and their `ranks`, 1 being the best."""
        sizes = {"ids": self.top, "logits": self.top, "log_sum": 1, "entropy": 1}
        sizes |= {"chosen": len(self.tokens), "ranks": len(self.tokens)}
        found, start = {}, 0
        for name, size in sizes.items():
            found[name] = slice(start, start + size)
            start += size
        return found

    def read(
        self, hidden: Float[Tensor, "batch query d_model"], layer: int, n_numbers: int
    ) -> Float[Tensor, "batch query column"]:
        """The numbers of rows of one layer, in fp64, which holds ids too.

        Args:
            hidden: rows of `resid_post`.
            layer: whose.
            n_numbers: how many the residual stream of the whole pass has.
        """
        if hidden.shape[-1] != self.d_model:
            raise ModelError(
                f"the residual stream of layer {layer} is {hidden.shape[-1]} wide, the final normalisation takes "
                f"{self.d_model}: this model's cannot be read as words"
            )
        flat = hidden.flatten(0, 1)
        budget = min(max(n_numbers // 2, LEAST), MOST)  # what is made of logits takes as much again, twice
        width = self._width()
        step = max(1, budget // width)
        parts = [self._numbers(flat[start : start + step], layer) for start in range(0, len(flat), step)]
        return torch.cat(parts).reshape(*hidden.shape[:2], -1)

    def _width(self) -> int:
        weight = getattr(self.unembedding.head, "weight", None)
        return int(getattr(self.unembedding.head, "out_features", 0) or (len(weight) if weight is not None else MOST))

    def _numbers(self, hidden: Float[Tensor, "row d_model"], layer: int) -> Float[Tensor, "row column"]:
        if self.translators is not None:
            hidden = self.translators.apply(layer, hidden)
        logits = self.unembedding(hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        best = logits.topk(self.top, dim=-1)
        log_sum = logits.logsumexp(-1, keepdim=True)
        chosen = logits[:, list(self.tokens)]
        ranks = [(logits > chosen[:, i : i + 1]).sum(-1, keepdim=True) + 1 for i in range(len(self.tokens))]
        probabilities = (logits - log_sum).exp_()
        entropy = log_sum - torch.einsum("rv,rv->r", probabilities, logits)[:, None]
        parts = [best.indices, best.values, log_sum, entropy, chosen, *ranks]
        return torch.cat([part.double() for part in parts], -1)


def ids_of(numbers: Tensor) -> Tensor:
    """Whole numbers out of packed ones; -1 where a batch row has fewer rows than others."""
    return numbers.nan_to_num(-1).long()


def split(packed: Tensor, columns: dict[str, slice], names: Sequence[str]) -> list[Tensor]:
    """Some of the packed numbers."""
    return [packed[..., columns[name]] for name in names]
