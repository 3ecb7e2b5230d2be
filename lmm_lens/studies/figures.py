"""Figures of studies: maps of heads, profiles by relative depth, what answers lose with heads, VAR's grid, sinks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..figures.axes import new_axes, tick_heads
from .across import DEPTHS, profile
from .record import Record

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

COLORS = ("#1b6ca8", "#d1603d", "#3c8d53", "#8859a8", "#b58900", "#5f6b7a")
GREY = "#9a9a9a"


def head_map(record: Record, data: str, metric: str, query: str, ax: Axes | None = None) -> Axes:
    """A layer x head map of one score on one data set, layer 0 at the top; grey where there is no number."""
    from matplotlib import colormaps

    rows = record["maps"][data][query][metric]["mean"]
    values = np.array([[np.nan if x is None else x for x in row] for row in rows], dtype=float)
    n_layers, n_heads = values.shape
    ax = ax or new_axes(min(max(3.6, 0.3 * n_heads + 1.9), 12), min(max(2.0, 0.3 * n_layers), 9) + 1.0)
    colors = colormaps["viridis"].with_extremes(bad="#d9d9d9")
    shown = ax.imshow(values, cmap=colors, aspect="auto", vmin=0, vmax=max(1e-9, float(np.nanmax(values))))
    ax.figure.colorbar(shown, ax=ax).set_label(metric.replace("_", " "), fontsize=9)
    tick_heads(ax, n_layers, n_heads)
    ax.set(xlabel="head", ylabel="layer")
    ax.set_title(f"{record.name}: {data}, {query} row, {record['data'][data]['n']} prompts", fontsize=10)
    return ax


def depth_profiles(records: Sequence[Record], ax: Axes | None = None) -> Axes:
    """The score that heads were ranked by, mean over a layer's heads, by relative depth; a line a model."""
    ax = ax or new_axes(6.0, 3.2)
    for i, record in enumerate(records):
        ax.plot(DEPTHS, profile(record), color=COLORS[i % len(COLORS)], marker="o", markersize=3, label=record.name)
    ranked = sorted({record["settings"]["rank_by"].replace("_", " ") for record in records})
    ax.set(xlabel="relative depth: 0 first layer, 1 last", ylabel=" or ".join(ranked), xlim=(-0.02, 1.02))
    ax.set_ylim(bottom=0)
    ax.legend(fontsize=8, frameon=False)
    ax.set_title("mean over the heads of a layer and over data sets", fontsize=10)
    return ax


def removal_curves(table: pandas.DataFrame, outcome: str = "accuracy", ax: Axes | None = None) -> Axes:
    """What answers of one model lose with the top k heads, solid, and with random heads of their layers, dashed.

    Args:
        table: rows of a record's "removal".
        outcome: "accuracy" or "log_prob".
        ax: where; a new figure by default.
    """
    ax = ax or new_axes(6.0, 3.4)
    ax.axhline(0, color="black", linewidth=0.8)
    shown = table[(table["outcome"] == outcome) & (table["set"] == "top")].sort_values("k")
    for i, (data, rows) in enumerate(shown.groupby("data", sort=False)):
        color = COLORS[i % len(COLORS)]
        label = f"{data} ({rows['questions'].iloc[0]})"
        ax.plot(rows["k"], rows["effect"], color=color, marker="o", markersize=4, label=label)
        ax.fill_between(rows["k"], rows["low"].astype(float), rows["high"].astype(float), color=color, alpha=0.15)
        ax.plot(rows["k"], rows["control"], color=color, linestyle="--", linewidth=1)
    ks = sorted(shown["k"].unique())
    ax.set_xscale("log", base=2)
    ax.set_xticks(ks, [str(k) for k in ks])
    ax.minorticks_off()
    ax.set(xlabel="heads removed", ylabel={"accuracy": "accuracy lost", "log_prob": "log probability lost"}[outcome])
    ax.legend(fontsize=8, frameon=False)
    ax.set_title("the top heads, 95% intervals; dashed: random heads of the same layers", fontsize=10)
    return ax


def var_grid(table: pandas.DataFrame, tests: pandas.DataFrame, ax: Axes | None = None) -> Axes:
    """What VAR changes on one data set of one model, by transfer fraction and ratio; the paper's setting outlined.

    Args:
        table: rows of a record's "conditions".
        tests: rows of its "tests".
        ax: where; a new figure by default.
    """
    from matplotlib.patches import Rectangle

    own = table[table["fraction"].notna() & ~table["condition"].str.endswith(", controls")]
    fractions, ratios = sorted(own["fraction"].unique()), sorted(own["ratio"].unique())
    against = tests[tests["against"] == "plain"].set_index("condition")
    values = np.full((len(ratios), len(fractions)), np.nan)
    ax = ax or new_axes(1.1 * len(fractions) + 2.6, 0.6 * len(ratios) + 1.6)
    for row in own.to_dict("records"):
        at = ratios.index(row["ratio"]), fractions.index(row["fraction"])
        found = against.loc[row["condition"]]
        values[at] = found["difference"]
        text = f"{found['difference']:+.2g}\np {found['p']:.2g}"
        ax.text(at[1], at[0], text, ha="center", va="center", fontsize=8)
        if row["paper"]:
            ax.add_patch(Rectangle((at[1] - 0.48, at[0] - 0.48), 0.96, 0.96, fill=False, linewidth=1.6))
    limit = max(0.02, float(np.nanmax(np.abs(values))))
    shown = ax.imshow(values, cmap="RdBu", vmin=-2 * limit, vmax=2 * limit, aspect="auto")
    ax.figure.colorbar(shown, ax=ax).set_label(f"{own['metric'].iloc[0].replace('_', ' ')}, against plain", fontsize=8)
    ax.set_xticks(range(len(fractions)), [f"{x:g}" for x in fractions])
    ax.set_yticks(range(len(ratios)), [f"{x:g}" for x in ratios])
    ax.set(xlabel="transfer fraction p", ylabel="least non-sink ratio rho")
    ax.set_title(f"{own['data'].iloc[0]} ({own['task'].iloc[0]}); outlined: the paper's setting", fontsize=9)
    return ax


def sink_places(record: Record, ax: Axes | None = None) -> Axes | None:
    """How often the patch at each place of the picture is a sink; None where there is nothing to show."""
    places = record["found"]["places"]
    if places is None:
        return None
    ax = ax or new_axes(3.6, 3.0)
    shown = ax.imshow(np.array(places, dtype=float), cmap="magma", vmin=0)
    ax.figure.colorbar(shown, ax=ax).set_label("share of prompts and layers", fontsize=8)
    ax.set(xlabel="column of patches", ylabel="row of patches")
    ax.set_title(f"{record.name}: where sinks lie", fontsize=10)
    return ax
