"""What the notebooks share: one look for their figures, and samples of a data set as batches of prompts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import pandas as pd
import torch

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lmm_lens import Lens, Prompt
    from lmm_lens.data import Sample

BLUE, ORANGE, GREEN, PINK, SKY, GREY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#8c8c8c"
"""Okabe and Ito's colours, which colour-blind readers tell apart."""

LOOK: Any = {
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": plt.cycler(color=[BLUE, ORANGE, GREEN, PINK, SKY, GREY]),
    "legend.frameon": False,
    "legend.fontsize": 8,
}


def setup() -> None:
    """One look for figures and tables, and one thread: more only cost with a model as small as the bundled one."""
    pd.set_option("display.width", 120, "display.max_columns", 20)
    plt.rcParams.update(LOOK)
    torch.set_num_threads(1)


def batches(lens: Lens, samples: Iterable[Sample], size: int = 50) -> list[Prompt]:
    """Samples as prompts of `size` batch rows each; a smaller size takes less memory with a large model."""
    every = list(samples)
    groups = [every[start : start + size] for start in range(0, len(every), size)]
    return [lens.prompt([s.question for s in group], images=[list(s.images) for s in group]) for group in groups]


def intervals(ax: Axes, table: Any, colors: list[str], names: str = "condition", value: str = "accuracy") -> None:
    """A dot a row of a table with its interval (columns `low` and `high`), the first row on top."""
    places = range(len(table))
    ax.hlines(places, table["low"], table["high"], colors=colors, linewidth=2)
    ax.scatter(table[value], places, c=colors, s=28, zorder=3)
    ax.set_yticks(list(places), table[names])
    if not ax.yaxis_inverted():  # axes that share it would turn it back
        ax.invert_yaxis()
    ax.grid(axis="x", linewidth=0.4, alpha=0.6)


def draw_circuit(ax: Axes, streams: list[str], moves: list[Any], writes: list[tuple[int, float]], answer: str) -> None:
    """A circuit as a drawing: residual streams side by side, layers from bottom to top, heads as arrows between them.

    Args:
        ax: where.
        streams: names of the token groups, left to right; the answer is read off the last one.
        moves: (layer, from stream, to stream, names of the heads, effect, colour) each.
        writes: (layer, effect) of feed-forward layers that write into the last stream.
        answer: what is read off at the top.
    """
    n_layers = 1 + max(layer for layer, *_ in [*moves, *writes])
    for x, name in enumerate(streams):
        ax.plot([x, x], [-0.5, n_layers - 0.3], color="#c8c8c8", linewidth=7, solid_capstyle="round", zorder=1)
        ax.text(x, -0.75, name, ha="center", va="top", fontsize=9)
    for layer, start, end, names, effect, color in moves:
        style = {"arrowstyle": "-|>,head_width=0.28,head_length=0.5", "color": color, "mutation_scale": 14}
        width = 1 + 6 * abs(effect)
        ends = (start, layer - 0.15), (end, layer + 0.25)
        style |= {"linewidth": width, "shrinkA": 6, "shrinkB": 6}
        ax.annotate("", ends[1], ends[0], arrowprops=style, zorder=3)
        middle = (start + end) / 2, layer + 0.05
        label = ax.text(*middle, f"{names}\n{effect:.2f}", ha="center", va="center", fontsize=8, color=color, zorder=4)
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1.5})
    last = len(streams) - 1
    for layer, effect in writes:
        width, height = 0.8 + 3 * abs(effect), layer + 0.45
        box = {"boxstyle": "round,pad=0.3", "facecolor": "white", "edgecolor": GREEN, "linewidth": width}
        ax.text(last + 0.42, height, f"MLP {layer}: {effect:.2f}", fontsize=8, color=GREEN, va="center", bbox=box)
        ax.plot([last, last + 0.38], [height] * 2, color=GREEN, linewidth=width, zorder=2)
    ax.text(last, n_layers - 0.18, answer, ha="center", va="bottom", fontsize=10, weight="bold")
    ax.set(xlim=(-0.6, last + 1.1), ylim=(-1.2, n_layers + 0.3), yticks=range(n_layers), xticks=[])
    ax.set_yticklabels([f"layer {layer}" for layer in range(n_layers)])
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.tick_params(left=False)


def shell(command: str, folder: str) -> None:
    """Run a command of this Python's environment in a folder, and print what it says."""
    words = command.split()
    program = shutil.which(words[0], path=str(Path(sys.executable).parent)) or words[0]
    colored = ("FORCE_COLOR", "CLICOLOR_FORCE")  # a notebook's kernel asks for colours and moving lines
    plain = {name: value for name, value in os.environ.items() if name not in colored}
    plain |= {"COLUMNS": "110", "NO_COLOR": "1"}
    done = subprocess.run([program, *words[1:]], cwd=folder, env=plain, text=True, capture_output=True)
    print(done.stdout + (done.stderr if done.returncode else ""))
    if done.returncode:
        raise SystemExit(f"{command!r} ended with status {done.returncode}")
