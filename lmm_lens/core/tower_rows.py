"""The shapes in which vision towers run, and the one that taps get."""

from __future__ import annotations

from torch import Tensor

from ..errors import HookError


def as_rows(x: Tensor, layer: int) -> Tensor:
    """An activation as [row, token, width].

    Raises:
        HookError: it is neither that nor a packed [token, width].
    """
    if x.ndim not in (2, 3):
        raise HookError(
            f"layer {layer} of the vision tower runs on {tuple(x.shape)}: a map of rows and columns, as in SAM, has no "
            "sequence of tokens\n  lmm-lens reads and edits towers whose tokens stand in a row"
        )
    return x if x.ndim == 3 else x[None]


def check_length(length: int, layer: int, n_tokens: int) -> None:
    """HookError where a layer runs on other tokens than the first."""
    if length != n_tokens:
        raise HookError(
            f"layer {layer} of the vision tower runs on {length} tokens, the first on {n_tokens}: this tower merges "
            "patches on its way, so that rows of its first layer say nothing here\n  read and edit the layers before"
        )
