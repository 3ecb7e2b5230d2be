"""A picture with its visual tokens, to lay numbers over: all that a figure needs of a prompt, and it can be saved.

A prompt row has one canvas for each picture and each frame that its model sees, and two for a picture that it sees
whole and in crops. Colours of the picture are kept: what is laid over it lets it through.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ..errors import PromptError
from ..prompts.prompt import Prompt
from ..prompts.spans import Box, Span
from .axes import COLORS, OVERLAY
from .sources import level_names, levels_of, name_of, picture_of, sources_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable

EDGE = 768
"""Pixels of the longer side that are kept of a picture."""


@dataclass(frozen=True, eq=False)
class Canvas:
    """One look at one picture, or at one frame of a video.

    Attributes:
        name: of the picture and the look, as in `image 0` or `image 0, detail`.
        extent: what is drawn, in pixels of the picture as given: the picture, and patches that reach over its edge.
        frame: the picture's own box; None where only tensors were given.
        pixels: UInt8[height, width, 3], the picture, made smaller where it is large; None as `frame`.
        spans: the visual tokens on it, none overlapping another; each has its grid and region.
    """

    name: str
    extent: Box
    frame: Box | None
    pixels: UInt8[Tensor, "height width 3"] | None
    spans: tuple[Span, ...]

    @property
    def positions(self) -> tuple[int, ...]:
        """The positions of its visual tokens in the padded sequence."""
        return tuple(position for span in self.spans for position in span.positions)

    def box(self, position: int) -> Box:
        """The pixels that the patch of a token covers."""
        return next(span.box(position) for span in self.spans if position in span.positions)

    def draw(self, ax: Axes) -> None:
        """The picture alone, in pixels of it as given."""
        if self.pixels is not None and self.frame is not None:
            ax.imshow(self.pixels.numpy(), extent=(self.frame.x0, self.frame.x1, self.frame.y1, self.frame.y0))
        ax.set(xlim=(self.extent.x0, self.extent.x1), ylim=(self.extent.y1, self.extent.y0), xticks=[], yticks=[])
        ax.set_aspect("equal")

    def draw_weights(
        self,
        ax: Axes,
        weights: Float[Tensor, " position"],
        low: float,
        high: float,
        colors: str = COLORS,
    ) -> ScalarMappable:
        """Lay one number a visual token over the picture: the higher, the brighter and the more opaque.

        Args:
            ax: where.
            weights: by position in the sequence; NaN is not drawn.
            low, high: ends of the scale, shared by the panels of a figure.
            colors: matplotlib's name of the scale.

        Returns:
            What a colour bar is made of.
        """
        import numpy as np
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        self.draw(ax)
        scale = Normalize(low, high)
        for span in self.spans:
            assert span.grid is not None
            assert span.region is not None
            heat = weights[list(span.positions)].reshape(span.grid).double().numpy()
            share = np.nan_to_num((heat - low) / ((high - low) or 1))
            ax.imshow(
                np.ma.masked_invalid(heat),
                extent=(span.region.x0, span.region.x1, span.region.y1, span.region.y0),
                cmap=colors,
                norm=scale,
                alpha=np.clip(share, 0, 1) ** 0.5 * OVERLAY,
                interpolation="nearest",
            )
        ax.set(xlim=(self.extent.x0, self.extent.x1), ylim=(self.extent.y1, self.extent.y0))
        return ScalarMappable(scale, colors)

    # ------------------------------------------------------------------ files

    def about(self) -> dict[str, Any]:
        """What a file's header says of it; `pixels` goes beside it."""
        spans = [{**vars(span), "region": span.region and list(span.region)} for span in self.spans]
        frame = self.frame and list(self.frame)
        return {"name": self.name, "extent": list(self.extent), "frame": frame, "spans": spans}

    @classmethod
    def restored(cls, about: Mapping[str, Any], pixels: Tensor | None) -> Canvas:
        """What `about` has told of."""
        frame = None if about["frame"] is None else Box(*about["frame"])
        return cls(about["name"], Box(*about["extent"]), frame, pixels, tuple(map(_span, about["spans"])))


def canvases_of(prompt: Prompt, row: int) -> tuple[Canvas, ...]:
    """Every look at every picture and frame of a prompt row, in the order of its tokens; none without pictures.

    Visual tokens whose place in their picture is not known are on none.
    """
    found: list[Canvas] = []
    for spans in sources_of(prompt, row):
        placed = [span for span in spans if span.grid is not None and span.region is not None]
        picture, _ = picture_of(prompt, row, spans[0])
        levels = levels_of(placed)
        for look, level in zip(level_names(len(levels)), levels, strict=True):
            frame = None if picture is None else Box(0, 0, *picture.size)
            regions = [span.region for span in level if span.region] + ([frame] if frame else [])
            name = name_of(level[0]) + (f", {look}" if look else "")
            found.append(Canvas(name, _around(regions), frame, _pixels(picture), level))
    return tuple(found)


def check_placed(canvases: Sequence[Canvas], prompt: Prompt, row: int) -> None:
    """PromptError where a prompt row has nothing to draw on: no visual token, or none whose place is known."""
    if not canvases and not bool(prompt.mask("visual")[row].any()):
        raise PromptError(f"row {row} of the prompt has no visual tokens, so there is no picture to draw on")
    if not canvases:
        raise PromptError("the layout of these visual tokens is not known, so they cannot be drawn over the picture")


def check_boards(canvases: Sequence[Canvas], row: int) -> None:
    """The same of a result, which has the canvases alone."""
    if not canvases:
        raise PromptError(f"row {row} has no picture to draw on, or it is not known where its visual tokens lie in it")


def _pixels(picture: Any) -> UInt8[Tensor, "height width 3"] | None:
    if picture is None:
        return None
    import numpy as np

    small = picture.convert("RGB")
    small.thumbnail((EDGE, EDGE))
    return torch.from_numpy(np.array(small))


def _around(boxes: Sequence[Box]) -> Box:
    sides = zip(*boxes, strict=True)
    return Box(*(pick(side) for pick, side in zip((min, min, max, max), sides, strict=True)))


def _span(about: Mapping[str, Any]) -> Span:
    region, grid = about["region"], about["grid"]
    placed = {"region": region and Box(*region), "grid": grid and tuple(grid), "positions": tuple(about["positions"])}
    return Span(**{**about, **placed})
