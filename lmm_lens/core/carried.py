"""What the runs of one job leave to the next, so that activations need not travel between them."""

from __future__ import annotations

from torch import Tensor


class Carried:
    """Activations of whole prompts, kept where the model is for as long as the job lasts.

    Attributes:
        kept: Float[batch, position, ...] by (name, layer).
    """

    kept: dict[tuple[str, int], Tensor]

    def __init__(self) -> None:
        self.kept = {}

    def keep(self, name: str, layer: int, positions: Tensor, valid: Tensor, rows: Tensor, n_tokens: int) -> None:
        """Add rows [batch, query, ...] of a prompt of so many tokens; rows that were not kept are 0.

        Args:
            name, layer: what they are.
            positions, valid: Int and Bool[batch, query], where they stand, and which of them are real.
            rows: their values.
            n_tokens: of the prompt.
        """
        key = name, layer
        if key not in self.kept:
            self.kept[key] = rows.new_zeros(rows.shape[0], n_tokens, *rows.shape[2:])
        batch, entry = valid.nonzero(as_tuple=True)
        self.kept[key][batch, positions[batch, entry]] = rows[batch, entry]

    def get(self, name: str, layer: int) -> Tensor:
        """What an earlier run has kept, [batch, position, ...]."""
        return self.kept[name, layer]
