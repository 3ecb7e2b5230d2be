"""What modules give that lay the tokens of all batch rows end to end, as Llama 4's mixtures of experts do."""

from __future__ import annotations

from torch import Tensor


def in_rows(x: Tensor, entered: object) -> Tensor:
    """A module's output as [batch, token, width], where it is that of the tokens that entered, end to end.

    Args:
        x: the output.
        entered: what went into the module; anything but [batch, token, width] of as many tokens leaves x as it is.
    """
    if x.ndim != 2 or not isinstance(entered, Tensor) or entered.ndim != 3:
        return x
    batch, length = entered.shape[:2]
    return x.unflatten(0, (batch, length)) if len(x) == batch * length else x
