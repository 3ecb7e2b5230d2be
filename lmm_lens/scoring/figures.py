"""Figures: a score of every head as a heat map, and one head's attention laid over the picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import HookError, PromptError
from ..figures import draw_over_image, new_axes
from ..figures.axes import COLORS, HIGHEST, WIDEST, tick_heads
from ..hooks.heads import check_head
from ..hooks.points import Read
from ..prompts.prompt import Prompt

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..hooks.heads import HeadSet
    from ..lens import Lens
    from .head_scores import HeadScores


EVEN = 2.0
"""Times its mean that a patch gets at most where attention is called nearly even."""


def head_heatmap(
    scores: HeadScores, ax: Axes | None = None, mark: HeadSet | None = None, vmax: float | None = None
) -> Axes:
    """A layer x head heat map of the mean scores, layer 0 at the top.

    Args:
        scores: what to draw.
        ax: where; a new figure by default.
        mark: heads to outline.
        vmax: the score of the brightest colour; the largest by default.
    """
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import Normal, withStroke

    n_layers, n_heads = scores.values.shape
    size = min(max(3.6, 0.34 * n_heads + 1.6), WIDEST), min(max(2.4, 0.3 * n_layers + 1.2), HIGHEST)
    ax = ax or new_axes(*size)
    shown = ax.imshow(scores.values.numpy(), cmap=COLORS, aspect="auto", vmin=0, vmax=vmax)
    ax.figure.colorbar(shown, ax=ax, label=scores.unit)
    for layer, head in mark or ():
        outline = Rectangle((head - 0.44, layer - 0.44), 0.88, 0.88, fill=False, edgecolor="white", linewidth=1.5)
        outline.set_path_effects([withStroke(linewidth=3.2, foreground="black"), Normal()])
        ax.add_patch(outline)
    tick_heads(ax, n_layers, n_heads)
    ax.set(xlabel="head", ylabel="layer")
    ax.set_title(f"{scores.metric}, query {scores.query}, {scores.n_prompts} prompts", fontsize=10)
    return ax


def attention_over_image(
    lens: Lens,
    prompt: Prompt,
    layer: int,
    head: int,
    query: str | int = "last",
    *,
    row: int = 0,
    image: int = 0,
    ax: Axes | None = None,
    sinks: Sequence[int] = (),
) -> Axes:
    """One head's attention from one query row, laid over the picture.

    Args:
        lens: the model.
        prompt: a prompt made from pictures.
        layer: layer of the head.
        head: the head.
        query: "last", or the position of a query token.
        row: batch row.
        image: picture of that row.
        ax: where to draw; a new figure by default.
        sinks: positions to outline as sink tokens.

    Raises:
        HookError: no such layer, head or position.
        PromptError: the prompt was made from tensors, so there is no picture, or its layout is unknown.
    """
    check_head(layer, head, lens.n_layers, lens.n_heads)
    if not 0 <= row < prompt.n_rows:
        raise PromptError(f"row {row} is out of range: the prompt has rows 0 to {prompt.n_rows - 1}")
    if not 0 <= image < len(prompt.images[row]):
        raise PromptError(
            f"row {row} has no picture {image} to draw on: it was given {len(prompt.images[row])}\n"
            "  make the prompt with lens.prompt(text, images=...)"
        )
    if isinstance(query, str) and query != "last":
        raise HookError(f'query must be "last" or a position of the prompt, given {query!r}')
    rows = query if isinstance(query, str) else [query]
    pattern = lens.run(prompt, read=[Read("pattern", [layer], [head], rows)], logits="last").reads["pattern", layer]
    weights = pattern[row, 0, 0].cpu()
    ax = ax or new_axes(3.6, 3.4)
    draw_over_image(ax, prompt, weights, row=row, image=image, sinks=sinks)
    on_image = weights[prompt.mask("visual")[row]]
    even = ", nearly even" if float(on_image.max()) < EVEN * float(on_image.mean()) else ""
    ax.set_title(f"L{layer}H{head}: {float(on_image.sum()):.0%} on the image{even}", fontsize=9)
    return ax
