"""Aya Vision: each crop behind a numbered tile tag, the whole picture last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .tiles import Shape, Size, Tiled, canvas


class AyaVision(Tiled):
    """The tags number the crops; in how many rows they lie, only the size of the picture tells."""

    family = "aya_vision"
    model_types = ("aya_vision",)
    picture = r"<(?:[.G]+i+)+>"  # the numbered tags may be of several tokens

    @property
    def tags(self) -> Mapping[str, Sequence[str]]:
        own = self.processor
        return {"<": [own.start_of_img_token], "G": [own.tile_global_token], ">": [own.end_of_img_token]}

    @property
    def shuffle(self) -> int:
        return int(self.config.downsample_factor)

    def shape(self, letters: str, ids: Sequence[int], n_crops: int, size: Size | None) -> Shape | None:
        return size and canvas(self.processor.image_processor, "get_optimal_tiled_canvas", size)
