"""Molmo 2: the whole picture in low resolution (tile 0), then again in high (tile 1), each a grid with column tokens.

The high resolution is that of overlapping crops, whose overlaps are left out of the tokens, so that both are plain
grids over the whole picture. A token pools 2 x 2 patches, fewer in the last row and column where their number is odd.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lmm_lens.errors import PromptError
from lmm_lens.prompts.spans import Box, Span

from .anyres import Edges, Mosaic
from .base import Adapter
from .row import BatchRow, TokenRun

Size = tuple[int, int]  # width, height


class Molmo2(Adapter):
    """Molmo 2 with pictures. Its videos are of the same tokens, and not told apart here."""

    family = "molmo2"
    model_types = ("molmo2",)
    has_grid = True
    images_in = ("image_grids",)

    @property
    def image_token_id(self) -> int | None:
        return self._token_id("image_patch_id")

    @property
    def video_token_id(self) -> int | None:
        return None  # the same as that of pictures

    @property
    def video_slot(self) -> str | None:
        return None

    @property
    def marker_ids(self) -> frozenset[int]:
        names = ("image_start_token_id", "low_res_image_start_token_id", "image_end_token_id")
        around = frozenset(id_ for name in names if (id_ := self._token_id(name)) is not None)
        return around | self.ids_of("<im_start>", "<low_res_im_start>", "<im_end>", "<im_col>")

    def images(self, row: BatchRow, found: list[TokenRun]) -> list[Span]:
        grids, pooling = row.inputs.get("image_grids"), row.inputs.get("image_token_pooling")
        if grids is None or pooling is None:
            return super().images(row, found)
        held = [position for run in found for position in run]
        sizes = [(low, wide, high, far) for low, wide, high, far in grids.tolist()]
        n_tokens = [low * wide + high * far for low, wide, high, far in sizes]
        start = sum(n_tokens[: row.first_picture])  # of this row's pictures in the pooling
        spans: list[Span] = []
        for index, (low, wide, high, far) in enumerate(sizes[row.first_picture :]):
            if not held:
                break
            for tile, shape in enumerate(((low, wide), (high, far))):
                size = shape[0] * shape[1]
                if len(held) < size:
                    raise PromptError(
                        f"picture {index} of the row has grids of {low} x {wide} and {high} x {far} tokens by "
                        f"image_grids, but the text has {len(held)} left for it\n"
                        "  process text and pictures together, with the model's own processor"
                    )
                run, held = tuple(held[:size]), held[size:]
                rows, columns = self.edges(pooling[start : start + size], shape, row.size(index))
                start += size
                region = Box(columns[0][0], rows[0][0], columns[-1][1], rows[-1][1])
                spans.append(Mosaic("image", run, index, tile, shape, region, rows=rows, columns=columns))
        if held:
            raise PromptError(
                f"{len(held)} image tokens from position {held[0]} on belong to no picture of image_grids\n"
                "  process text and pictures together, with the model's own processor"
            )
        return spans

    def edges(self, pooling: Tensor, shape: tuple[int, int], size: Size | None) -> tuple[Edges, Edges]:
        """First and last pixel of each row and column of a grid, from the patches that each token pools.

        Args:
            pooling: [token, slot], the patches of each token; below 0 where there is none.
            shape: rows and columns of the grid.
            size: (width, height) of the picture; None leaves pixels of the resized one.
        """
        side = round(pooling.shape[-1] ** 0.5)
        real = (pooling >= 0).view(*shape, side, side)
        down, across = real[:, 0].any(-1).sum(-1).tolist(), real[0].any(-2).sum(-1).tolist()
        patch = int(self.config.vision_config.patch_size)
        whole: Any = size or (sum(across) * patch, sum(down) * patch)
        return _spread(down, whole[1]), _spread(across, whole[0])


def _spread(counts: Sequence[int], length: float) -> Edges:
    """Where parts of so many patches begin and end along so many pixels."""
    total, edges, at = sum(counts), [], 0
    for count in counts:
        edges.append((at * length / total, (at + count) * length / total))
        at += count
    return tuple(edges)
