"""Figures of patching: effects as a heat map, and those of patches over the picture. Red restores, blue destroys."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ..errors import PromptError, ScoreError
from ..figures import new_axes
from ..figures.axes import EFFECT_COLORS, FAINTEST_EFFECT, OVERLAY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..prompts.prompt import Prompt
    from .scores import PatchScores

LABEL = "effect (0 corrupt, 1 clean)"
N_WRITTEN = 12  # columns up to which the numbers are written into the cells
HALF_A_DIGIT = 0.005  # numbers have two digits behind the point
LEAST = 0.1  # of the largest effect, below which one that destroys is noise
AXIS = {"span": "", "patch": "visual token", "head": "head"}


def effect_heatmap(scores: PatchScores, ax: Axes | None = None, tower: PatchScores | None = None) -> Axes:
    """A layer x unit heat map of the mean effects, layer 0 at the top, white at 0.

    Where nothing is destroyed the colour bar begins at 0; numbers that round to 0 are left out.

    Args:
        scores: what to draw.
        ax: where; a new figure by default.
        tower: effects in the vision tower, drawn above; its layers are called V0, V1, ...
    """
    names = [str(layer) for layer in scores.layers]
    if tower is not None:
        names = [f"V{layer}" for layer in tower.layers] + names
        n_above, scores = len(tower.layers), whole_path(tower, scores)
    from matplotlib import colormaps

    values = scores.values.numpy()
    n_layers, n_units = values.shape
    named = scores.by == "span"
    width = (0.74 if named else 0.46 if n_units <= N_WRITTEN else 0.2) * n_units + 1.9
    slant = 0.2 + 0.045 * max(map(len, scores.units)) if named else 0.0  # names at 30 degrees
    ax = ax or new_axes(min(max(3.8, width), 12), min(max(2.0, 0.34 * n_layers), 9) + 0.8 + slant)
    limit = _scale(scores.values)
    colors = colormaps[EFFECT_COLORS].with_extremes(bad="#d9d9d9")  # NaN is not 0
    shown = ax.imshow(values, cmap=colors, aspect="auto", vmin=-limit, vmax=limit)
    bar = ax.figure.colorbar(shown, ax=ax)
    bar.set_label(LABEL, fontsize=9)
    if float(scores.values.nan_to_num().min()) > -LEAST * limit:
        bar.ax.set_ylim(0, limit)
    if n_units <= N_WRITTEN and n_layers <= 2 * N_WRITTEN:
        for layer, unit in (~scores.values.isnan()).nonzero().tolist():
            value = values[layer, unit]
            if abs(value) < HALF_A_DIGIT:
                continue
            ink = "white" if abs(value) > 0.65 * limit else "black"
            ax.text(unit, layer, _written(value), ha="center", va="center", color=ink, fontsize=7)
    columns = range(n_units) if named else range(0, n_units, max(1, n_units // 16))
    ax.set_xticks(list(columns), [scores.units[i].replace("_", " ") for i in columns])
    if named:
        ax.tick_params(axis="x", rotation=30)
        for label in ax.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    lines = range(0, n_layers, max(1, n_layers // 16))
    ax.set_yticks(list(lines), [names[i] for i in lines])
    ax.set(xlabel=AXIS[scores.by], ylabel="layer")
    ax.set_title(_title(scores), fontsize=10)
    if tower is not None:
        ax.axhline(n_above - 0.5, color="black", linewidth=1)
        ax.set_ylabel("layer of the vision tower (V), then of the decoder")
    return ax


def whole_path(tower: PatchScores, decoder: PatchScores) -> PatchScores:
    """The effects from the first layer of the tower to the last of the decoder, by span; NaN where a part has no such.

    Raises:
        ScoreError: they are not of the tower and of the decoder, by span, of the same pairs and model.
    """
    if tower.shape is None or decoder.shape is not None or (tower.by, decoder.by) != ("span", "span"):
        raise ScoreError(
            "the whole path is made of effects in the vision tower and of effects in the decoder, both by span\n"
            f"  given {tower.site} by {tower.by} and {decoder.site} by {decoder.by}"
        )
    if tower.method != decoder.method:
        raise ScoreError(
            f"effects by {tower.method} in the tower and by {decoder.method} in the decoder are no one path\n"
            "  measure both in the same way"
        )
    same = tower.answers == decoder.answers and tower.model == decoder.model
    if not same or not torch.allclose(tower.clean_ld, decoder.clean_ld, atol=1e-3):
        raise ScoreError(
            f"the effects are of other pairs, or of another model: {tower.answers} in the tower, "
            f"{decoder.answers} in the decoder\n"
            "  patch the same clean and corrupt prompt in both"
        )
    units = tuple(dict.fromkeys((*tower.units, *decoder.units)))
    n = len(tower.layers), len(decoder.layers)
    whole = torch.full((tower.n_pairs, sum(n), len(units)), torch.nan)
    for part, start in ((tower, 0), (decoder, n[0])):
        for number, unit in enumerate(part.units):
            whole[:, start : start + len(part.layers), units.index(unit)] = part.per_pair[:, :, number]
    site = f"{tower.site} and {decoder.site}"
    return replace(decoder, per_pair=whole, units=units, layers=tuple(range(sum(n))), site=site)


def effect_over_image(
    scores: PatchScores, prompt: Prompt, layer: int, row: int = 0, image: int = 0, ax: Axes | None = None
) -> Axes:
    """The effects of one layer's patches over the picture; `PatchScores.plot_over_image` documents the arguments."""
    effects = _of_row(scores, prompt, layer, row)
    if not 0 <= image < len(prompt.images[row]):
        raise PromptError(
            f"row {row} has no picture {image} to draw on: it was given {len(prompt.images[row])}\n"
            "  make the prompt with lens.prompt(text, images=...)"
        )
    if scores.shape is not None:
        raise ScoreError(
            "these are tokens of the vision tower, which are not laid over a picture\n"
            "  lens.vision.patches(prompt) says which visual tokens each is part of"
        )
    spans = [span for span in prompt.spans[row] if span.image == image and span.kind == "image"]
    if not spans or any(span.grid is None or span.region is None for span in spans):
        raise PromptError("the layout of these visual tokens is not known, so they cannot be drawn over the picture")
    import numpy as np
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    ax = ax or new_axes(4.2, 3.6)
    picture = prompt.images[row][image]
    ax.imshow(np.asarray(picture.convert("RGB")), extent=(0, picture.width, picture.height, 0))
    limit = _scale(scores.per_pair[row])  # of all layers, so that their pictures can be compared
    by_position = dict(zip(prompt.mask("visual")[row].nonzero().flatten().tolist(), effects.tolist(), strict=True))
    for span in spans:
        assert span.grid is not None
        assert span.region is not None
        heat = np.array([by_position[position] for position in span.positions]).reshape(span.grid)
        box = span.region
        ax.imshow(
            heat,
            extent=(box.x0, box.x1, box.y1, box.y0),
            cmap=EFFECT_COLORS,
            vmin=-limit,
            vmax=limit,
            alpha=np.clip(np.abs(heat) / limit, 0, 1) ** 0.5 * OVERLAY,
            interpolation="nearest",
        )
    ax.figure.colorbar(ScalarMappable(Normalize(-limit, limit), EFFECT_COLORS), ax=ax, shrink=0.9).set_label(
        LABEL, fontsize=9
    )
    ax.set(xlim=(0, picture.width), ylim=(picture.height, 0), xticks=[], yticks=[])
    correct, incorrect = scores.answers[row]
    ax.set_title(f"{scores.site} of layer {layer}, pair {row}:\n{correct!r} clean, {incorrect!r} corrupt", fontsize=9)
    return ax


def _of_row(scores: PatchScores, prompt: Prompt, layer: int, row: int) -> torch.Tensor:
    """Effect of each visual token of one pair; ScoreError where scores and prompt do not fit."""
    if scores.by != "patch":
        raise ScoreError(f"only effects by patch lie in the picture, these are by {scores.by}: run it with by='patch'")
    if layer not in scores.layers:
        raise ScoreError(f"layer {layer} was not patched: the scores have layers {list(scores.layers)}")
    if prompt.n_rows != scores.n_pairs:
        raise ScoreError(f"the scores have {scores.n_pairs} pairs, but the prompt has {prompt.n_rows} rows")
    if not 0 <= row < scores.n_pairs:
        raise ScoreError(f"row {row} is out of range: the scores have pairs 0 to {scores.n_pairs - 1}")
    n_visual = int(prompt.mask("visual")[row].sum())
    if n_visual != len(scores.units):
        raise ScoreError(f"the scores have {len(scores.units)} patches, but row {row} has {n_visual} visual tokens")
    effects = scores.per_pair[row, scores.layers.index(layer)]
    if bool(effects.isnan().any()):
        raise ScoreError(f"pair {row} has no effect to draw: its clean and corrupt runs have the same logit difference")
    return effects


def _scale(values: torch.Tensor) -> float:
    """The ends of the colour scale: the largest effect of either sign."""
    return max(FAINTEST_EFFECT, float(values.nan_to_num().abs().max()))


def _written(value: float) -> str:
    """Two digits, and no minus before a zero."""
    return f"{round(float(value), 2) + 0.0:.2f}"


def _title(scores: PatchScores) -> str:
    n = scores.n_pairs - scores.n_undefined
    rows = scores.rows.replace("_", " ")
    scope = f", rows {rows if len(rows) < 24 else rows[:20] + ' ...'}" if rows else ""
    return f"{scores.method} of {scores.site}{scope}, {n} pair{'s' * (n != 1)}"
