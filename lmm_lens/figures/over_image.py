"""Weights of visual tokens laid over the picture that they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from ..errors import PromptError
from ..prompts.prompt import Prompt

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
