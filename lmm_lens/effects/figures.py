"""Figures of a sweep: which heads matter, how sure that is, and where they lie. Red helps the answer, blue hurts it.

"Significant" is everywhere the same: Holm's adjusted p below .05, so that among all units of the sweep the chance of
any false one is below .05.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import ScoreError
from ..figures import new_axes
from ..figures.axes import EFFECT_COLORS, FAINTEST_EFFECT, HIGHEST, N_TICKS, WIDEST, tick_heads

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

    from ..statistics import ControlTest
    from .scores import HeadEffects

ALPHA = 0.05
RED, BLUE, GREY = "#b2182b", "#2166ac", "#9a9a9a"
LARGEST_DOT = 34  # square points
N_NAMED = 6  # units named beside their points


def effect_map(effects: HeadEffects, ax: Axes | None = None, table: pandas.DataFrame | None = None) -> Axes:
    """A layer x head heat map of the mean effects, layer 0 at the top, white at 0, a dot on significant heads.

    The larger the effect, the larger the dot: one that is sure and next to nothing has next to no dot.

    Args:
        effects: of single heads; units of several heads have no place in the map and are left out.
        ax: where; a new figure by default.
        table: `effects.to_pandas()`, if it is there already.

    Raises:
        ScoreError: no unit is a single head.
    """
    from matplotlib import colormaps

    table = _of_heads(effects.to_pandas() if table is None else table)
    n_layers, n_heads = effects.units[0].n_layers, effects.units[0].n_heads
    values = np.full((n_layers, n_heads), np.nan)
    values[table["layer"].astype(int), table["head"].astype(int)] = table["effect"]
    ax = ax or new_axes(min(max(3.8, 0.3 * n_heads + 1.9), WIDEST), min(max(2.0, 0.3 * n_layers) + 1.0, HIGHEST))
    limit = max(FAINTEST_EFFECT, float(np.nanmax(np.abs(values))))
    colors = colormaps[EFFECT_COLORS].with_extremes(bad="#d9d9d9")  # a head that was not measured is not 0
    shown = ax.imshow(values, cmap=colors, aspect="auto", vmin=-limit, vmax=limit)
    ax.figure.colorbar(shown, ax=ax).set_label(_label(effects), fontsize=9)
    found = table[_significant(table)]
    sizes = LARGEST_DOT * (found["effect"].abs() / limit).clip(0, 1)
    ax.scatter(found["head"].astype(float), found["layer"].astype(float), s=sizes, c="black", edgecolors="white")
    tick_heads(ax, n_layers, n_heads)
    ax.set(xlabel="head", ylabel="layer")
    ax.set_title(f"{_n_prompts(effects)}; dots: significant (Holm, {ALPHA:g})", fontsize=10)
    return ax


def sorted_effects(effects: HeadEffects, ax: Axes | None = None, table: pandas.DataFrame | None = None) -> Axes:
    """Every unit from the largest effect to the smallest, with its 95% interval; significant ones in colour and named.

    Args as in `effect_map`.
    """
    table = _measured(effects.to_pandas() if table is None else table)
    ax = ax or new_axes(6.4, 3.4)
    ranks = np.arange(1, len(table) + 1)
    colors = _colors(table)
    ax.axhline(0, color="black", linewidth=0.8)
    ax.vlines(ranks, table["low"], table["high"], colors=colors, linewidth=max(0.5, 1.6 - len(table) / 200))
    ax.scatter(ranks, table["effect"], c=colors, s=10 if len(table) < 300 else 4, zorder=3)
    ax.margins(x=0.03)
    ax.set(xlabel="units by rank", ylabel=_label(effects))
    if len(table) <= N_TICKS:
        ax.set_xticks(ranks, [_short(unit) for unit in table["unit"]], rotation=45, fontsize=8)
    else:
        _name(ax, table)
    ax.set_title(f"95% intervals over prompts; {int(_significant(table).sum())} significant in colour", fontsize=10)
    return ax


def effects_by_layer(effects: HeadEffects, ax: Axes | None = None, table: pandas.DataFrame | None = None) -> Axes:
    """The effects of the heads of each layer, a dot a head, and their mean.

    Args and errors as in `effect_map`.
    """
    table = _of_heads(effects.to_pandas() if table is None else table)
    n_layers = effects.units[0].n_layers
    ax = ax or new_axes(min(max(4.2, 0.24 * n_layers + 2), 10), 3.2)
    means = table.groupby("layer")["effect"].mean()
    ax.axhline(0, color="black", linewidth=0.8)
    ax.plot(means.index.astype(int), means, color="black", linewidth=1.2, label="their mean by layer")
    shown = table.sort_values("p_holm", ascending=False)  # coloured dots on top of grey ones
    ax.scatter(shown["layer"].astype(int), shown["effect"], c=_colors(shown), s=14, alpha=0.85, zorder=3)
    ax.set(xlabel="layer", ylabel=_label(effects), xlim=(-0.6, n_layers - 0.4))
    ax.xaxis.set_ticks(range(0, n_layers, max(1, n_layers // N_TICKS)))
    ax.legend(fontsize=7, frameon=False)
    ax.set_title("a dot a head, significant ones in colour", fontsize=10)
    return ax


def against_controls(test: ControlTest, metric: str, ax: Axes | None = None) -> Axes:
    """The effect of a set of heads, with its 95% interval over prompts, and those of its random controls.

    Args:
        test: of `lmm_lens.statistics.control_test`.
        metric: of its effects.
        ax: where; a new figure by default.
    """
    ax = ax or new_axes(6.4, 1.7)
    heights = np.linspace(-0.3, 0.3, len(test.null)) if len(test.null) > 1 else np.zeros(1)
    ax.axvline(0, color="black", linewidth=0.8)
    ax.scatter(test.null, heights, color=GREY, s=18)
    effect = test.effect
    ax.hlines(1, effect.low, effect.high, color=RED, linewidth=1.6)
    ax.scatter([effect.mean], [1], color=RED, s=28, zorder=3)
    ax.set_yticks([0, 1], [f"{len(test.null)} random sets", "the chosen heads"])
    ax.set(ylim=(-0.7, 1.5), xlabel=f"effect on {metric.replace('_', ' ')}")
    ax.set_title(f"random sets have as many heads in each layer; p = {test.p:.2g}", fontsize=10)
    return ax


# ---------------------------------------------------------------------- what a table says


def _measured(table: pandas.DataFrame) -> pandas.DataFrame:
    table = table[table["effect"].notna()]
    if table.empty:
        raise ScoreError("no unit has an effect on any prompt: there is nothing to draw")
    return table.reset_index(drop=True)


def _of_heads(table: pandas.DataFrame) -> pandas.DataFrame:
    single = _measured(table).dropna(subset=["layer", "head"])
    if single.empty:
        raise ScoreError("only the effects of single heads have a place by layer, these are of sets of heads")
    return single.reset_index(drop=True)


def _significant(table: pandas.DataFrame) -> pandas.Series:
    return table["p_holm"] < ALPHA


def _colors(table: pandas.DataFrame) -> list[str]:
    signs = zip(_significant(table), table["effect"], strict=True)
    return [(RED if effect > 0 else BLUE) if found else GREY for found, effect in signs]


def _name(ax: Axes, table: pandas.DataFrame) -> None:
    """Names of the significant units with the largest effects of either sign, beside their points and apart."""
    found = table[_significant(table)]
    low, high = ax.get_ylim()
    found = found[found["effect"].abs() > 0.06 * (high - low)]  # smaller ones lie where everything lies
    strongest = found.loc[found["effect"].abs().sort_values(ascending=False, kind="stable").index[:N_NAMED]]
    gap, aside = 0.055 * (high - low), 0.12 * len(table)
    for sign, side in ((1, "left"), (-1, "right")):
        height = sign * np.inf  # of the last name: names go from the outermost inwards
        for row in strongest[np.sign(strongest["effect"]) == sign].itertuples():
            height = sign * min(sign * row.effect, sign * height - gap)
            rank = int(row.Index) + 1
            line = {"arrowstyle": "-", "linewidth": 0.5, "color": GREY, "shrinkA": 1, "shrinkB": 2}
            text = ax.annotate(_short(row.unit), (rank, row.effect), (rank + sign * aside, height), arrowprops=line)
            text.set(ha=side, va="center", fontsize=7)


def _short(unit: str) -> str:
    return unit if len(unit) < 16 else f"{unit.split()[0]} + {unit.count(' ')} more"


def _label(effects: HeadEffects) -> str:
    return f"effect on {effects.metric.replace('_', ' ')}"


def _n_prompts(effects: HeadEffects) -> str:
    return f"{effects.n_prompts} prompt{'s' * (effects.n_prompts != 1)}"
