"""What every reading of tokens has: which tokens, after which layers, and the pictures that they lie on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from jaxtyping import Int
from torch import Tensor

from ..errors import HookError, PromptError
from ..figures.canvas import Canvas, check_boards
from ..runs import files
from .canvas_files import canvases_about, canvases_in, pixels_of
from .grids import as_grid

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

Value = TypeVar("Value")


@dataclass(frozen=True, eq=False)
class Reading:
    """Tokens of a prompt, read after some layers.

    Attributes:
        layers: after which the residual stream was read.
        positions: Int[batch, query], where the tokens stand; -1 where a batch row has fewer than others.
        tokens: per batch row, the text of every token of the prompt.
        canvases: per batch row, its pictures with their visual tokens.
    """

    layers: tuple[int, ...]
    positions: Int[Tensor, "batch query"]
    tokens: tuple[tuple[str, ...], ...]
    canvases: tuple[tuple[Canvas, ...], ...]

    def best(self, layer: int, row: int = 0) -> list[tuple[str, float]]:
        """The first word of each token that was read, and how strong it is, 0 to 1."""
        raise NotImplementedError

    def layer_index(self, layer: int) -> int:
        """Which of the layers that were read this is; HookError where it was not."""
        if layer not in self.layers:
            raise HookError(f"layer {layer} was not read: these were {list(self.layers)}")
        return self.layers.index(layer)

    def check_row(self, row: int) -> None:
        """PromptError where the prompt has no such batch row."""
        if not 0 <= row < len(self.positions):
            raise PromptError(f"row {row} is out of range: the prompt has rows 0 to {len(self.positions) - 1}")

    def query_index(self, position: int, row: int) -> int:
        """Which of a row's tokens that were read stands there; HookError where none does."""
        self.check_row(row)
        found = (self.positions[row] == position).nonzero().flatten().tolist()
        if not found:
            read = self.positions[row][self.positions[row] >= 0].tolist()
            said = f"{len(read)} tokens from {read[0]} to {read[-1]} were" if read else "no token of this row was"
            raise HookError(f"position {position} of row {row} was not read: {said}")
        return int(found[0])

    def by_position(self, row: int, values: Sequence[Value]) -> dict[int, Value]:
        """What belongs to each token that was read, by its position."""
        read = self.positions[row][self.positions[row] >= 0].tolist()
        return dict(zip(read, values, strict=True))

    def canvas(self, picture: int, row: int) -> Canvas:
        """A picture of a row; PromptError where there is none, or the places of its tokens are not known."""
        own = self.canvases[row] if 0 <= row < len(self.canvases) else ()
        check_boards(own, row)
        if not 0 <= picture < len(own):
            raise PromptError(f"row {row} has no picture {picture}: it has {[canvas.name for canvas in own]}")
        return own[picture]

    def table(self, layer: int, picture: int = 0, row: int = 0) -> pandas.DataFrame:
        """The first word of every patch of a picture, as the patches lie.

        Args:
            layer: after which.
            picture: which of the row's canvases: pictures and frames in order, each look at one counted.
            row: batch row.

        Raises:
            HookError: the layer was not read.
            PromptError: there is no such picture, or the places of its tokens are not known.
        """
        import pandas

        texts = [text for text, _ in self.best(layer, row)]
        return pandas.DataFrame(as_grid(self.canvas(picture, row), self.by_position(row, texts), ""))

    def plot_words(self, layer: int, picture: int = 0, row: int = 0) -> Figure:
        """The first word of every patch, written over the picture: the fainter, the weaker."""
        from .word_figures import words_over_picture

        words = self.by_position(row, self.best(layer, row))
        canvas = self.canvas(picture, row)
        return words_over_picture(canvas, words, f"{canvas.name}, after layer {layer}")

    # ------------------------------------------------------------------ files

    def about(self) -> dict[str, Any]:
        """What the header of a file says of it."""
        canvases = [canvases_about(own) for own in self.canvases]
        return {"layers": self.layers, "tokens": self.tokens, "canvases": canvases}

    def pictures(self) -> dict[str, Tensor]:
        """The pictures, as tensors of a file."""
        return {
            f"row {row} {name}": pixels
            for row, own in enumerate(self.canvases)
            for name, pixels in pixels_of(own).items()
        }

    @staticmethod
    def restored(path: Any, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """The fields that `about` and `pictures` have told of, and the positions."""
        layers, positions = tuple(about["layers"]), tensors["positions"]
        files.check_numbers(path, "positions", positions, {"batch": len(about["tokens"]), "query": None})
        pixels = [
            {name.removeprefix(f"row {row} "): x for name, x in tensors.items() if name.startswith(f"row {row} ")}
            for row in range(len(positions))
        ]
        canvases = (canvases_in(own, of_row) for own, of_row in zip(about["canvases"], pixels, strict=True))
        tokens = tuple(map(tuple, about["tokens"]))
        return {"layers": layers, "positions": positions, "tokens": tokens, "canvases": tuple(canvases)}
