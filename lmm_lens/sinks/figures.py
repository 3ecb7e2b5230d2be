"""Figures of sinks: the evidence by layer, and where the sinks lie on a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import PromptError
from ..figures import draw_over_image, new_axes
from ..prompts.prompt import Prompt

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .discovery import SinkReport


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
    phi: Float[Tensor, " position"],
    sinks: Sequence[int],
    layer: int,
    row: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """The sink score of every patch over the first picture of a prompt row, sink tokens outlined."""
    if not prompt.images[row]:
        raise PromptError(f"row {row} has no picture to draw on\n  make the prompt with lens.prompt(text, images=...)")
    ax = ax or new_axes(3.6, 3.4)
    draw_over_image(ax, prompt, phi, row=row, sinks=sinks, label="phi")
    ax.set_title(f"layer {layer}: {len(sinks)} visual sinks (dashed), phi up to {float(phi.max()):.1f}", fontsize=9)
    return ax
