"""Weights of visual tokens laid over the picture that they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from ..errors import PromptError
from ..prompts.prompt import Prompt
from .axes import COLORS, OVERLAY

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_over_image(
    ax: Axes,
    prompt: Prompt,
    weights: Float[Tensor, " position"],
    *,
    row: int = 0,
    image: int = 0,
    sinks: Sequence[int] = (),
    label: str | None = "attention",
) -> None:
    """Lay one weight a visual token over a picture in its colours: each patch where it lies, brighter with more weight.

    The scale begins at 0 and ends at the picture's largest weight; a colour bar says which, so that what is nearly even
    looks so.

    Args:
        ax: where.
        prompt: made from pictures.
        weights: by position in the sequence.
        row: batch row.
        image: picture of that row.
        sinks: positions to outline.
        label: of the colour bar; None for none.
    """
    import numpy as np
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import MaxNLocator

    picture = prompt.images[row][image]
    ax.imshow(np.asarray(picture.convert("RGB")), extent=(0, picture.width, picture.height, 0))
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
            cmap=COLORS,
            vmin=0,
            vmax=largest or 1,
            alpha=np.clip(heat / (largest or 1), 0, 1) ** 0.5 * OVERLAY,
            interpolation="nearest",
        )
    for position in sinks:
        box = prompt.box(position, row)
        size = (box.x1 - box.x0, box.y1 - box.y0)
        ax.add_patch(Rectangle((box.x0, box.y0), *size, fill=False, edgecolor="white", linewidth=1.5, linestyle="--"))
    if label is not None:
        bar = ax.figure.colorbar(ScalarMappable(Normalize(0, largest or 1), COLORS), ax=ax, fraction=0.046, pad=0.03)
        bar.set_label(label, fontsize=8)
        bar.ax.tick_params(labelsize=7)
        bar.locator = MaxNLocator(3)
        bar.update_ticks()
    ax.set(xlim=(0, picture.width), ylim=(picture.height, 0), xticks=[], yticks=[])
