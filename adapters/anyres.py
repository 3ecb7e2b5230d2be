"""The any-resolution layout of LLaVA-1.6 and its kin: a picture as a whole, and again cut into crops.

A picture is one run of image tokens: first the whole of it, squeezed into one square (tile 0); then the patches of all
crops, put together into one grid, without what only padding filled, and perhaps shrunk (tile 1). A newline vector after
each row of that grid carries the image token id too; it is a marker. Which patches remain is the model's own affair,
so its own code is run here, on the patches' coordinates in place of their features.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import compress, pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lmm_lens.errors import PromptError
from lmm_lens.prompts.spans import Box, Span

from .base import Adapter
from .frames import encoded
from .picture import covered
from .row import BatchRow, TokenRun

Edges = tuple[tuple[float, float], ...]  # first and last pixel of each row or column of a grid


@dataclass(frozen=True)
class Mosaic(Span):
    """A grid put together from crops, whose last pixels no patch may see, so that there are gaps between crops.

    Attributes:
        rows: top and bottom of each row of patches, in pixels of the picture.
        columns: left and right of each column.
    """

    rows: Edges = ()
    columns: Edges = ()

    def _box(self, row: int, column: int) -> Box:
        (top, bottom), (left, right) = self.rows[row], self.columns[column]
        return Box(left, top, right, bottom)

    def at(self, x: float, y: float) -> int | None:
        row, column = _holding(self.rows, y), _holding(self.columns, x)
        return None if row is None or column is None else self.positions[row * len(self.columns) + column]


def _holding(edges: Edges, at: float) -> int | None:
    index = bisect_right([first for first, _ in edges], at) - 1
    return index if index >= 0 and at < edges[index][1] else None


class AnyRes(Adapter):
    """What the families of this layout share. Pixels are those of the original picture, for tensors alone too."""

    has_grid = True
    images_in = ("image_sizes", "pixel_values")

    @property
    def packing(self) -> dict[str, Any]:
        """What the model's `pack_image_features` takes beside features, sizes and newline vector."""
        return {"vision_feature_select_strategy": self.config.vision_feature_select_strategy}

    def is_cut(self, row: BatchRow, picture: int) -> bool:
        """Whether a picture, counted over the whole batch, is cut into crops."""
        return True

    @property
    def core(self) -> Any:
        """The model without its head."""
        return getattr(self.model, "model", self.model)

    @cached_property
    def edge(self) -> int:
        """Pixels along one edge of a crop."""
        return int(self.config.vision_config.image_size)

    @cached_property
    def side(self) -> int:
        """Patches along one edge of a crop."""
        return int(self.edge // self.config.vision_config.patch_size)

    @property
    def cell(self) -> float:
        """Pixels along one side of what one token stands for."""
        return float(self.config.vision_config.patch_size)

    @property
    def share(self) -> float:
        """How much of a crop its patches cover: SigLIP sees 378 of 384 pixels."""
        return self.side * self.cell / self.edge

    def n_given(self, kind: str, inputs: Mapping[str, Any]) -> dict[str, int]:
        """Pixels may also come as all crops of all pictures in one row."""
        given = super().n_given(kind, inputs)
        in_one_row = "pixel_values" in given and inputs["pixel_values"].ndim != 5
        return {name: n for name, n in given.items() if not (in_one_row and name == "pixel_values")}

    def images(self, row: BatchRow, found: list[TokenRun]) -> list[Span]:
        known: Any = row.inputs.get("image_sizes")
        if known is None:
            known = encoded(row, "image")
        if known is None and "pixel_values" not in row.inputs:
            return super().images(row, found)
        if known is None:
            raise PromptError(
                f"{self.family} needs image_sizes, the (height, width) of each original picture, beside pixel_values\n"
                f"  given {sorted(row.inputs)}\n  pass on all that the model's own processor returns"
            )
        spans: list[Span] = []
        index = 0
        for run in found:
            rest = run
            while rest:
                picture = row.first_picture + index
                size, cut = None, self.is_cut(row, picture)
                packed = torch.empty(0, 2)
                if picture < len(known) and "image_sizes" in row.inputs:
                    size = known[picture].tolist()
                    packed = self.packed(size, cut)
                elif picture < len(known):
                    packed = self.unplaced(known[picture])
                if not 0 < len(packed) <= len(rest):
                    raise PromptError(
                        f"image tokens and pictures do not match in the run at positions {run[0]} to {run[-1]}\n"
                        f"  {len(rest)} of its {len(run)} tokens are left for picture {picture} of {len(known)}"
                        + (f" of {size[1]} x {size[0]} pixels, which takes {len(packed)}" if size else "")
                        + "\n  process text and pictures with the model's own processor"
                    )
                spans += self.lay_out(rest[: len(packed)], packed, size, cut, index)
                rest, index = rest[len(packed) :], index + 1
        return spans

    def unplaced(self, features: Float[Tensor, "token width"]) -> Float[Tensor, "token 2"]:
        """As `packed`, where only encoded features are left (`generate` encodes pictures before it calls the model).

        Newlines are known by their vector; where the patches lie is not known.
        """
        newline = self.core.image_newline.to(features)
        return torch.where((features == newline).all(-1, keepdim=True), math.nan, 0.0).expand(-1, 2)

    def crops(self, size: tuple[int, int]) -> tuple[int, int]:
        """Into how many (rows, columns) of crops a picture of this (height, width) is cut."""
        from transformers.image_processing_utils import select_best_resolution

        height, width = select_best_resolution(size, self.config.image_grid_pinpoints)
        return height // self.edge, width // self.edge

    def packed(self, size: tuple[int, int], cut: bool) -> Float[Tensor, "token 2"]:
        """Of every token (x, y) of its patch's centre, counted in patches over the grid of crops; NaN for newlines."""
        places = torch.arange(self.side, dtype=torch.float64) + 0.5
        y, x = torch.meshgrid(places, places, indexing="ij")
        patches = torch.stack([x, y], -1).flatten(0, 1)
        down, across = self.crops(size) if cut else (0, 0)
        corners = [(column * self.side, row * self.side) for row in range(down) for column in range(across)]
        features = torch.stack([patches, *(patches + torch.tensor(corner) for corner in corners)])
        newline = torch.full((2,), math.nan, dtype=torch.float64)
        first: Any = self.core.pack_image_features([features], [size], image_newline=newline, **self.packing)[0]
        packed: Tensor = first if isinstance(first, Tensor) else first[0]  # with their lengths, or alone
        return packed

    def lay_out(
        self, run: TokenRun, packed: Float[Tensor, "token 2"], size: tuple[int, int] | None, cut: bool, index: int
    ) -> list[Span]:
        """The spans of one picture of this (height, width); without grids where the size is not known."""
        is_patch = ~packed[:, 0].isnan()
        n_base, patches = self.side**2, tuple(compress(run, is_patch.tolist()))
        base, rest = patches[:n_base], patches[n_base:]
        newlines = tuple(compress(run, (~is_patch).tolist()))
        is_alone = len(newlines) == 1 and not rest  # the newline after a picture that is not cut
        spans = [Span("marker", newlines, index, 0 if is_alone else 1)] if newlines else []
        if size is None:
            return [*spans, Span("image", base, index), *([Span("image", rest, index, 1)] if rest else [])]
        height, width = size
        edge = max(size)
        left, top = -((edge - width) // 2), -((edge - height) // 2)
        whole = (
            Box(0, 0, width, height) if cut else Box(left, top, left + edge, top + edge)
        )  # uncut: padded to a square
        spans.append(Span("image", base, index, 0, (self.side, self.side), covered(whole, self.share)))
        if rest:  # a picture 25 times as wide as high loses all of its crops' patches as padding
            centres = packed[is_patch][n_base:].unflatten(0, (len(newlines), -1))  # row column xy
            rows = self.edges(centres[:, 0, 1].tolist(), size, 0)
            columns = self.edges(centres[0, :, 0].tolist(), size, 1)
            region = Box(columns[0][0], rows[0][0], columns[-1][1], rows[-1][1])
            grid = (len(rows), len(columns))
            spans.append(Mosaic("image", rest, index, 1, grid, region, rows=rows, columns=columns))
        return spans

    def edges(self, centres: list[float], size: tuple[int, int], axis: int) -> Edges:
        """Where rows (axis 0) or columns (axis 1) begin and end in the picture, from the centres of their patches.

        The processor fits the picture into the crops with its shape kept, and pads it on both sides.
        """
        frame = [n_crops * self.edge for n_crops in self.crops(size)]
        scale = min(frame[0] / size[0], frame[1] / size[1])
        tight = frame[axis] / size[axis] == scale
        fitted = frame[axis] if tight else min(math.ceil(size[axis] * scale), frame[axis])
        padding = (frame[axis] - fitted) // 2
        pitch = (centres[-1] - centres[0]) / (len(centres) - 1) if len(centres) > 1 else 1.0  # above 1 if shrunk
        bounds = [round(centres[0] + (i - 0.5) * pitch, 6) for i in range(len(centres) + 1)]

        def pixel(bound: float, patch_index: int) -> float:
            crop, within = divmod(patch_index, self.side)
            return (crop * self.edge + (within + bound - patch_index) * self.cell - padding) * size[axis] / fitted

        return tuple(
            (pixel(first, math.floor(first)), pixel(last, math.ceil(last) - 1)) for first, last in pairwise(bounds)
        )
