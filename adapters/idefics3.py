"""Idefics3 and SmolVLM: each crop behind a `<row_r_col_c>` tag, a line break after each row, the whole picture last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lmm_lens.errors import PromptError

from .tiles import Shape, Size, Tiled


class Idefics3(Tiled):
    """Everything is in the tags."""

    family = "idefics3"
    model_types = ("idefics3",)
    picture = r"(?:<Ti+\.*)*<Gi+<"

    @property
    def tags(self) -> Mapping[str, Sequence[str]]:
        whole = getattr(self.processor, "global_image_tag", None) or self.processor.global_image_token
        crops = self.tokens_like(r"<row_\d+_col_\d+>")
        return {"<": [self.processor.fake_image_token], "T": crops, "G": [whole]}

    @property
    def shuffle(self) -> int:
        return int(self.config.scale_factor)

    def shape(self, letters: str, ids: Sequence[int], n_crops: int, size: Size | None) -> Shape | None:
        return self.shape_of_tags(letters, ids)


class SmolVLM(Idefics3):
    """Its videos are frames of one tile, each behind its time."""

    family = "smolvlm"
    takes_videos = True
    model_types = ("smolvlm",)
    frame_label = r"Frame from \d{2,}:\d\d:"

    def spans(self, ids: Any, inputs: Mapping[str, Any], pictures: Any = None, clips: Any = None) -> list[Any]:
        if any(pictures or ()) and any(clips or ()):
            raise PromptError(
                "SmolVLM's processor takes pictures or videos: of both it returns only the pixels of the videos\n"
                "  ask about the videos alone, or give some of their frames as images"
            )
        return super().spans(ids, inputs, pictures, clips)
