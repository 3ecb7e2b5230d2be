"""The hook point "projector": what a model's projector gives, per visual token, where it enters the decoder.

Level 0 is what stands in the place of the visual tokens where the first layer reads. Models with deepstack add more of
it before later layers: the level is the layer that reads it first, and what was added is the difference between what
the layer before left and what this one is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ..core.rows import Rows
from ..core.taps import Tap, TapContext, TapFunction
from ..errors import HookError
from ..prompts.prompt import Prompt
from ..prompts.rows import RowsLike, bind_rows

if TYPE_CHECKING:
    from .points import ModelShape

PROJECTOR = "projector"


def levels_of(shape: ModelShape, given: Sequence[int] | None) -> list[int]:
    """The levels that are meant; all by default.

    Raises:
        HookError: there is no such level, or the model reads pictures by cross-attention.
    """
    if shape.crossing:
        raise HookError(
            f"what this model's projector gives are the keys of layers {shape.crossing} (cross-attention), and no "
            "tokens of the sequence\n  read and edit these layers"
        )
    levels = [0, *shape.reinjected]
    chosen = levels if given is None else list(dict.fromkeys(given))
    odd = [level for level in chosen if level not in levels]
    if odd or not chosen:
        raise HookError(f"levels {odd} of the projector are not there: its features enter layers {levels}")
    return chosen


def visual_rows(rows: RowsLike, prompt: Prompt) -> Rows:
    """Visual tokens; HookError for rows that hold others. "all" are all of them."""
    visual = prompt.mask("visual")
    if isinstance(rows, str) and rows == "all":
        return Rows("visual", visual)
    bound = bind_rows(rows, prompt)
    if bool((bound.prompt & ~visual).any()) or bound.generated != (0, 0):
        raise HookError(
            f"rows {bound.label!r} hold other tokens than visual ones, which alone the projector gives\n"
            '  give "visual", "image", "video", or positions of visual tokens'
        )
    return bound


def reading(
    levels: Sequence[int], rows: Rows, n_tokens: int, name: str, reduce: TapFunction | None = None
) -> list[Tap]:
    """The taps that read some levels."""

    def given(x: Tensor, context: TapContext) -> Tensor:
        return x.clone() if reduce is None else reduce(x.clone(), context)

    def added(x: Tensor, context: TapContext) -> Tensor:
        return given(x - _left(context), context)

    taps = [Tap("resid_pre", 0, rows, given, name=name)] if 0 in levels else []
    for level in levels:
        if level:
            taps += [_keeping(level, rows, n_tokens), Tap("resid_pre", level, rows, added, name=name)]
    return taps


def editing(level: int, rows: Rows, n_tokens: int, change: TapFunction) -> list[Tap]:
    """The taps that put something else in the place of what the projector gives at a level.

    Args:
        level: which.
        rows: of which tokens.
        n_tokens: of the prompt.
        change: of the rows there, what they become.
    """

    def changed(x: Tensor, context: TapContext) -> Tensor:
        left = _left(context)
        return left + change(x - left, context)

    if not level:
        return [Tap("resid_pre", 0, rows, change, edits=True)]
    return [_keeping(level, rows, n_tokens), Tap("resid_pre", level, rows, changed, edits=True)]


def _keeping(level: int, rows: Rows, n_tokens: int) -> Tap:
    """Keeps what the layer before a level leaves."""

    def keep(x: Tensor, context: TapContext) -> Tensor:
        context.carried.keep("before the projector", level, context.positions, context.valid, x, n_tokens)
        return x[..., :0]

    return Tap("resid_post", level - 1, rows, keep)


def _left(context: TapContext) -> Tensor:
    """What was kept, at the rows at hand."""
    whole = context.carried.get("before the projector", context.layer).to(context.positions.device)
    index = context.positions[..., None].expand(-1, -1, whole.shape[-1])
    return whole.gather(1, index)
