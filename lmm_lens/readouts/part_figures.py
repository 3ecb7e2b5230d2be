"""Figures of what parts add to an answer: red adds, blue takes away, white does neither."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..figures.axes import EFFECT_COLORS, FAINTEST_EFFECT, new_axes, tick_heads

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .parts import DirectAttribution

UNIT = "contribution (logits)"


def contributions(found: DirectAttribution, ax: Axes | None = None) -> Axes:
    """See `DirectAttribution.plot`."""
    pairs = {" against ".join(pair) for pair in found.answers}
    title = pairs.pop() if len(pairs) == 1 else f"{len(found.answers)} answers"
    if found.by in ("layer", "mlp"):
        values = found.mean.nan_to_num().tolist()
        names = [str(layer) for layer in range(len(values))]
        parts = {**dict(zip(names, values, strict=True)), **{name: float(x.mean()) for name, x in found.rest.items()}}
        ax = ax or new_axes(max(3.6, 0.34 * len(parts) + 1.2), 3.0)
        ax.bar(
            range(len(parts)), list(parts.values()), color=["#b2182b" if x > 0 else "#2166ac" for x in parts.values()]
        )
        ax.axhline(0, color="black", linewidth=0.6)
        ax.set_xticks(range(len(parts)), list(parts), rotation=60, ha="right", fontsize=7)
        ax.set(ylabel=UNIT)
        ax.set_title(f"{title}, by {found.by}", fontsize=10)
        return ax
    spans = found.by == "span"
    drawn = found.by_span().mean(0) if spans else found.mean
    n_layers, n_columns = drawn.shape
    slant = 0.9 if spans else 0.0
    ax = ax or new_axes(max(3.6, (0.7 if spans else 0.34) * n_columns + 1.8), max(2.4, 0.3 * n_layers + 1.2) + slant)
    limit = max(FAINTEST_EFFECT, float(drawn.nan_to_num().abs().max()))
    image = ax.imshow(drawn.numpy(), cmap=EFFECT_COLORS, aspect="auto", vmin=-limit, vmax=limit)
    ax.figure.colorbar(image, ax=ax).set_label(UNIT, fontsize=9)
    tick_heads(ax, n_layers, n_columns)
    if spans:
        ax.set_xticks(range(n_columns), [name.replace("_", " ") for name in found.spans], rotation=30, ha="right")
    ax.set(xlabel="keys of the heads" if spans else "head", ylabel="layer")
    ax.set_title(f"{title}, by {found.by}", fontsize=10)
    return ax
