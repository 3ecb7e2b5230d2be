"""Figures: a score of every head as a heat map, and one head's attention laid over the picture."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import HookError, PromptError
from .hooks.heads import check_head
from .hooks.points import Read
from .prompts.prompt import Prompt

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .hooks.heads import HeadSet
    from .lens import Lens
    from .scoring import HeadScores
    from .sinks import SinkReport


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

    from .scoring import METRICS

    n_layers, n_heads = scores.values.shape
    ax = ax or new_axes(max(3.6, 0.34 * n_heads + 1.6), max(2.4, 0.3 * n_layers + 1.2))
    shown = ax.imshow(scores.values.numpy(), cmap="viridis", aspect="auto", vmin=0, vmax=vmax)
    metric = METRICS.get(scores.metric)
    ax.figure.colorbar(shown, ax=ax, label=metric.unit if metric else scores.metric)
    for layer, head in mark or ():
        outline = Rectangle((head - 0.44, layer - 0.44), 0.88, 0.88, fill=False, edgecolor="white", linewidth=1.5)
        outline.set_path_effects([withStroke(linewidth=3.2, foreground="black"), Normal()])
        ax.add_patch(outline)
    _tick(ax, n_layers, n_heads)
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
    ax = ax or new_axes(3.2, 3.4)
    draw_over_image(ax, prompt, weights, row=row, image=image, sinks=sinks)
    visual = float(weights[prompt.mask("visual")[row]].sum())
    ax.set_title(f"L{layer}H{head}: {visual:.0%} on the image", fontsize=9)
    return ax


def draw_over_image(
    ax: Axes,
    prompt: Prompt,
    weights: Float[Tensor, "position"],
    *,
    row: int = 0,
    image: int = 0,
    sinks: Sequence[int] = (),
) -> None:
    """Lay one weight a visual token over a picture: each patch where it lies, brighter with more weight.

    The scale is that of the picture itself: its largest weight is opaque.
    """
    import numpy as np
    from matplotlib.patches import Rectangle

    picture = prompt.images[row][image]
    grey = np.asarray(picture.convert("L").convert("RGB")) * 0.6
    ax.imshow(grey.astype(np.uint8), extent=(0, picture.width, picture.height, 0))
    spans = [s for s in prompt.spans[row] if s.image == image and s.kind == "image"]
    if not spans or any(span.grid is None for span in spans):
        raise PromptError("the layout of these visual tokens is not known, so they cannot be drawn over the picture")
    largest = max(float(weights[list(span.positions)].max()) for span in spans)
    for span in spans:
        assert span.grid is not None
        assert span.region is not None
        heat = weights[list(span.positions)].reshape(span.grid).numpy()
        box = span.region
        ax.imshow(
            heat,
            extent=(box.x0, box.x1, box.y1, box.y0),
            cmap="inferno",
            vmin=0,
            vmax=largest or 1,
            alpha=np.clip(heat / (largest or 1), 0, 1) ** 0.5 * 0.9,
            interpolation="nearest",
        )
    for position in sinks:
        box = prompt.box(position, row)
        size = (box.x1 - box.x0, box.y1 - box.y0)
        ax.add_patch(Rectangle((box.x0, box.y0), *size, fill=False, edgecolor="#56b4e9", linewidth=1.5, linestyle="--"))
    ax.set(xlim=(0, picture.width), ylim=(picture.height, 0), xticks=[], yticks=[])


def sink_evidence(report: SinkReport, ax: Axes | None = None) -> Axes:
    """|x[d]| / rms at the first token by layer: the sink dimensions in colour, the largest of the others in grey."""
    ax = ax or new_axes(4.6, 3.0)
    layers = range(len(report.bos_ratio))
    others = torch.ones(report.bos_ratio.shape[1], dtype=torch.bool)
    others[list(report.dims)] = False
    ax.plot(layers, report.bos_ratio[:, others].amax(1), color="#888888", label="largest other dimension")
    for dim in report.dims:
        ax.plot(layers, report.bos_ratio[:, dim], marker="o", markersize=3, label=f"dimension {dim}")
    if report:
        label = f"threshold {report.threshold:.1f}"
        ax.axhline(report.threshold, color="black", linewidth=0.8, linestyle=":", label=label)
    ax.set(xlabel="layer", ylabel="|x[d]| / rms at the first token", ylim=(0, None))
    ax.legend(fontsize=7, frameon=False)
    return ax


def sinks_over_image(
    prompt: Prompt,
    phi: Float[Tensor, "position"],
    sinks: Sequence[int],
    layer: int,
    row: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """The sink score of every patch over the first picture of a prompt row, sink tokens outlined."""
    if not prompt.images[row]:
        raise PromptError(f"row {row} has no picture to draw on\n  make the prompt with lens.prompt(text, images=...)")
    ax = ax or new_axes(3.2, 3.4)
    draw_over_image(ax, prompt, phi, row=row, sinks=sinks)
    ax.set_title(f"layer {layer}: {len(sinks)} visual sinks (dashed), phi up to {float(phi.max()):.1f}", fontsize=9)
    return ax


def save_figure(ax: Axes, path: str | os.PathLike[str]) -> None:
    """Write the figure that some axes belong to; the ending of the name says the format."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.savefig(path)


def new_axes(width: float, height: float) -> Axes:
    """Axes of a figure of their own, in inches; as the last value of a notebook's cell they show themselves."""
    # not pyplot: it keeps every figure alive and needs a display where one is configured
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    ax = figure.subplots()

    def as_png() -> bytes:
        page = io.BytesIO()
        figure.savefig(page, format="png")
        return page.getvalue()

    ax._repr_png_ = as_png  # type: ignore[attr-defined]
    return ax


def _tick(ax: Axes, n_layers: int, n_heads: int) -> None:
    for axis, n in ((ax.xaxis, n_heads), (ax.yaxis, n_layers)):
        axis.set_ticks(torch.arange(0, n, max(1, n // 16)).tolist())
