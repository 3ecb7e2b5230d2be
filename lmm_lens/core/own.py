"""What users' own functions are given beside the rows, and what is held against what they return.

A metric or an edit of one's own is a function of a few rows of a pattern. It runs where the model is, on a server too,
so it uses torch and what it is given here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from ..errors import InterventionError, ScoreError
from .rows import Rows
from .taps import TapContext


class Keys:
    """The keys of some rows of a pattern, by the names of a prompt's masks.

        keys["image"]       Bool[batch, 1, 1, key], to be used with a pattern [batch, head, query, key] as it is
        keys.visible        Bool[batch, head | 1, query, key], which keys each row can see
        keys.context        layer, heads and positions of the rows, see `TapContext`

    Args:
        context: of the tap.
        n_keys: of the pattern.
        scopes: the row scopes of the prompt by name; generated tokens belong to "text", "all" and "after_image".
    """

    def __init__(self, context: TapContext, n_keys: int, scopes: dict[str, Rows]) -> None:
        self.context, self.n_keys, self.scopes = context, n_keys, scopes

    def __getitem__(self, name: str) -> Bool[Tensor, "batch 1 1 key"]:
        if name not in self.scopes:
            raise InterventionError(f"there are no keys {name!r}\n  there are: {', '.join(self.scopes)}")
        return self.context.keys(self.scopes[name], self.n_keys)[:, None, None]

    @property
    def visible(self) -> Bool[Tensor, "batch head query key"]:
        """Which keys each row can see; computes the scores once more."""
        assert self.context.visible is not None
        return self.context.visible()


def settled_pattern(name: str, pattern: Tensor, made: Any, keys: Keys, renormalise: bool) -> Tensor:
    """What an own edit made of a pattern, as attention that the model can go on with.

    Nothing stays on keys that a row cannot see, padding among them; rows with anything left are brought back to their
    sum, if asked, and rows with nothing left stay as they were.

    Args:
        name: of the function.
        pattern: what it was given.
        made: what it returned.
        keys: of the rows.
        renormalise: whether to bring rows back.

    Raises:
        InterventionError: it returned something else than weights in the shape of the pattern.
    """
    if not isinstance(made, Tensor) or made.shape != pattern.shape or made.dtype == torch.bool:
        given = f"{made.dtype} {list(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
        raise InterventionError(
            f"{name} returned {given}\n"
            f"  expected attention [batch, head, query, key] = {list(pattern.shape)}, as it was given"
        )
    new: Tensor = made.to(pattern.dtype)
    fits = new.isfinite() & (new >= 0) if renormalise else new.isfinite()
    if not bool(fits.all()):
        what = "that is not finite" if not bool(new.isfinite().all()) else "below 0, which cannot be renormalised"
        raise InterventionError(f"{name} returned attention {what}, in layer {keys.context.layer}")
    if bool(((new != 0) & (pattern == 0)).any()):
        new = new.masked_fill(~keys.visible, 0)
    if not renormalise:
        return new
    total = new.sum(-1, keepdim=True)
    back = pattern.sum(-1, keepdim=True) / total.clamp_min(torch.finfo(new.dtype).tiny)
    return torch.where(total > 0, new * back, pattern)


def settled_rows(name: str, site: str, rows: Tensor, new: Any, context: TapContext) -> Tensor:
    """What an own edit made of rows of an activation; InterventionError unless they are finite and of their shape."""
    if not isinstance(new, Tensor) or new.shape != rows.shape or new.dtype == torch.bool:
        given = f"{new.dtype} {list(new.shape)}" if isinstance(new, Tensor) else type(new).__name__
        raise InterventionError(f"{name} returned {given}\n  expected {site} = {list(rows.shape)}, as it was given")
    if not bool(new.isfinite().all()):
        raise InterventionError(f"{name} returned {site} that is not finite, in layer {context.layer}")
    return new


def own_measure(name: str, function: Callable[[Tensor, Any], Any]) -> Callable[[Tensor, Any], Tensor]:
    """A user's score of heads, with what it returns held against its shape; ScoreError where it is another."""

    def measure(pattern: Tensor, keys: Any) -> Tensor:
        score = function(pattern, keys)
        if not isinstance(score, Tensor) or score.shape != pattern.shape[:3]:
            given = f"{list(score.shape)}" if isinstance(score, Tensor) else type(score).__name__
            raise ScoreError(
                f"{name} returned {given}\n"
                f"  expected one number a row, [batch, head, query] = {list(pattern.shape[:3])}, of a pattern "
                f"[batch, head, query, key] = {list(pattern.shape)}"
            )
        return score.to(pattern.dtype)

    return measure
