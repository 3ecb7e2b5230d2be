"""InternVL 2.5, 3 and 3.5: one run of crops, row by row, and the thumbnail; a video's frames are runs of one tile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from .tiles import Shape, Size, Tiled, canvas


class InternVL(Tiled):
    """The tokens tell how many crops there are; in how many rows, only the size of the picture tells."""

    family = "internvl"
    takes_videos = True
    model_types: ClassVar[tuple[str, ...]] = ("internvl",)
    picture = "<?i+>?"
    frame_label = r"Frame\d+: "

    @property
    def tags(self) -> Mapping[str, Sequence[str]]:
        return {"<": [self.processor.start_image_token], ">": [self.processor.end_image_token]}

    @property
    def shuffle(self) -> int:
        return round(1 / float(self.config.downsample_ratio))

    def shape(self, letters: str, ids: Sequence[int], n_crops: int, size: Size | None) -> Shape | None:
        return size and canvas(self.processor.image_processor, "get_optimal_tiled_canvas", size)
