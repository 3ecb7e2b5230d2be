"""One row a unit of a sweep: its effect, the interval, and whether it could be chance among so many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ScoreError
from ..hooks.heads import HeadSet
from .checks import per_prompt
from .many import benjamini_hochberg, holm
from .paired import mean_interval, sign_flip_test

if TYPE_CHECKING:
    import pandas


def effects_table(
    units: Sequence[HeadSet],
    effects: Any,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    n_permutations: int | None = None,
    seed: int = 0,
) -> pandas.DataFrame:
    """The table of a sweep, largest effect first.

    Args:
        units: what was ablated at once, a head or several.
        effects: Float[prompt, unit], what each unit does on each prompt; NaN where that is undefined.
        level: of the bootstrap intervals.
        resamples: of the bootstrap.
        n_permutations: of the sign flip tests; by default 10,000, or 100 a unit where that is more, so that the
            smallest p still counts after Holm's correction.
        seed: of both.

    Returns:
        Columns unit (as "L3H1"), layer and head (missing for units of several heads), effect (the mean), low, high, p
        (two-sided), p_holm, q_bh, n (prompts with a number). Units without any come last.

    Raises:
        ScoreError: not one unit a column.
    """
    import pandas

    effects = per_prompt(effects, "effects")
    if effects.ndim != 2 or effects.shape[1] != len(units):
        raise ScoreError(f"effects must be [prompt, unit] of {len(units)} units, given {tuple(effects.shape)}")
    interval = mean_interval(effects, level, resamples, seed)
    enough = max(10_000, 100 * len(units)) if n_permutations is None else n_permutations
    test = sign_flip_test(effects, enough, seed)
    single = [next(iter(unit)) if len(unit) == 1 else (None, None) for unit in units]
    table = pandas.DataFrame(
        {
            "unit": [str(unit) for unit in units],
            "layer": pandas.array([layer for layer, _ in single], dtype="Int64"),
            "head": pandas.array([head for _, head in single], dtype="Int64"),
            "effect": interval.mean.numpy(),
            "low": interval.low.numpy(),
            "high": interval.high.numpy(),
            "p": test.p.numpy(),
            "p_holm": holm(test.p).numpy(),
            "q_bh": benjamini_hochberg(test.p).numpy(),
            "n": test.n.numpy(),
        }
    )
    return table.sort_values("effect", ascending=False, ignore_index=True, kind="stable")
