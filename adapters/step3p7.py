"""Step 3.7: crops between tags, a newline tag after each row of them, the whole picture last.

Two convolutions shrink the tower's patches to a quarter and look a little beyond a token's box.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lmm_lens.prompts.spans import Span

from .row import BatchRow, TokenRun
from .tiles import Shape, Size, Tiled


class Step3p7(Tiled):
    """Step 3.7 Flash; crops are smaller squares than the whole."""

    family = "step3p7"
    model_types = ("step3p7",)
    picture = "(?:<i+>;?)*Gi+E"

    @property
    def tags(self) -> Mapping[str, Sequence[str]]:
        names = {"<": "patch_start", ">": "patch_end", ";": "patch_newline", "G": "im_start", "E": "im_end"}
        return {letter: [f"<{name}>"] for letter, name in names.items()}

    @property
    def shuffle(self) -> int:
        return 4

    def shape(self, letters: str, ids: Sequence[int], n_crops: int, size: Size | None) -> Shape | None:
        rows = letters.count(";") + (";G" not in letters)
        return rows, n_crops // rows

    def n_tokens(self, inputs: Mapping[str, Any]) -> int | None:
        """Those of every whole and of every crop that `num_local_patches` counts."""
        if "pixel_values" not in inputs:
            return None
        counts = inputs.get("num_local_patches")
        n_crops = 0 if counts is None else sum(int(n) for n in counts)
        rows, columns = self.tile_grid(inputs)
        return len(inputs["pixel_values"]) * rows * columns + n_crops * self._crop_side(inputs) ** 2

    def _crop_side(self, inputs: Mapping[str, Any]) -> int:
        """Tokens along one side of a crop."""
        pixels = inputs.get("pixel_values_local")
        return 0 if pixels is None else int(pixels.shape[-1]) // self.token_size[0]

    def grids(self, row: BatchRow, index: int, held: list[int]) -> list[Shape]:
        whole, side = self.tile_grid(row.inputs), self._crop_side(row.inputs)
        n_crops = (len(held) - whole[0] * whole[1]) // side**2 if side else 0
        return [(side, side)] * n_crops + [whole]

    def tile_of(self, row: BatchRow, grid: Shape) -> Size:
        return grid[1] * self.token_size[0], grid[0] * self.token_size[1]

    def images(self, row: BatchRow, found: list[TokenRun]) -> list[Span]:
        if "pixel_values" not in row.inputs:  # the tower ran before: how large the tiles are is not known
            return [Span("image", run) for run in found]
        return super().images(row, found)
