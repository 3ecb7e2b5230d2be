"""What an adapter is told: one batch row, with the pictures and videos it was made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lmm_lens.errors import PromptError
from lmm_lens.prompts.family import Clip, Picture

TokenRun = tuple[int, ...]
"""Neighbouring positions of placeholder tokens."""


def equal_parts(run: TokenRun, size: int, kind: str, what: str) -> list[TokenRun]:
    """Cut a run of placeholders into the pictures or videos that follow each other in it.

    Args:
        run: the positions.
        size: tokens of each part.
        kind: "image" or "video".
        what: for the error, what a part is: "2 frames, 16 a frame".

    Raises:
        PromptError: the run is no whole number of parts.
    """
    if len(run) % size:
        several = "pictures" if kind == "image" else f"{kind}s"
        raise PromptError(
            f"a run of {len(run)} {kind} tokens at positions {run[0]} to {run[-1]} is no whole number of {several}\n"
            f"  this model makes {size} tokens of {what}\n"
            f"  process text and {several} with the model's own processor"
        )
    return [run[start : start + size] for start in range(0, len(run), size)]


def marked(ids: Tensor, bounds: Any, token: int) -> Tensor:
    """A copy of token ids with the same id at some ranges of positions, for classes that are told where pictures stand.

    Args:
        ids: Int[batch, position].
        bounds: of each batch row its ranges, as (start, stop).
        token: the id to put there.
    """
    made = ids.clone()
    for row, ranges in zip(made, bounds, strict=True):
        for start, stop in ranges:
            row[start:stop] = token
    return made


@dataclass(frozen=True)
class BatchRow:
    """One batch row, as an adapter sees it.

    Attributes:
        ids: token ids, padding included.
        inputs: all tensors of the batch.
        pictures: the row's pictures; None where the user processed them.
        clips: the row's videos; None where the user processed them.
        first_picture: how many pictures the rows before have, so that picture i of this row is entry
            `first_picture + i` of tensors that have one entry a picture.
        first_clip: the same for videos.
    """

    ids: Sequence[int]
    inputs: Mapping[str, Any]
    pictures: Sequence[Picture] | None = None
    clips: Sequence[Clip] | None = None
    first_picture: int = 0
    first_clip: int = 0

    def size(self, image: int) -> tuple[int, int] | None:
        """(width, height) of a picture as the user gave it; None where it is not known."""
        return self.pictures[image].size if self.pictures is not None and image < len(self.pictures) else None

    def clip_size(self, video: int) -> tuple[int, int] | None:
        """(width, height) of a video's frames as the user gave them; None where it is not known."""
        return self.clips[video].size if self.clips is not None and video < len(self.clips) else None
