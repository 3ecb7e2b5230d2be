"""The frames of a film that a model sees: so many, evenly spaced from the first to the last, as harnesses take them."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import PromptError
from ..prompts.videos import DECODERS, open_video

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURES = (".gif", ".webp", ".png", ".apng")
"""What PIL animates."""


def frames_of(film: Any, most: int) -> list[Image]:
    """The frames of a film to be seen, in order; all of them where they are given as a list.

    Args:
        film: a path, or anything else that `Lens.prompt` takes as a video.
        most: how many frames of a file; frames of a shorter one are seen twice, as by decord in lmms-eval.

    Raises:
        PromptError: it cannot be decoded, or nothing that decodes films is installed.
    """
    if isinstance(film, (list, tuple)) and len(film) == 1 and isinstance(film[0], (str, os.PathLike)):
        film = film[0]
    if not isinstance(film, (str, os.PathLike)):
        return open_video(film)
    path = Path(film)
    if path.suffix.lower() in PICTURES:
        every = open_video(path)
        return [every[index] for index in _spread(len(every), most)]
    read = next((read for module, read in DECODERS.items() if importlib.util.find_spec(module)), None)
    if read is None or not path.is_file():
        return open_video(path)  # which says what is wrong
    try:
        n_frames = sum(1 for _ in read(path))
        wanted = _spread(n_frames, most)
        kept = {index: frame for index, frame in enumerate(read(path)) if index in set(wanted)}
    except Exception as error:
        raise PromptError(f"{path.name!r} cannot be decoded as a film: {error}") from error
    return [kept[index] for index in wanted]


def _spread(n_frames: int, most: int) -> list[int]:
    """Evenly spaced numbers from the first frame to the last."""
    if not n_frames:
        raise PromptError("the film has no frames")
    return [int(index) for index in torch.linspace(0, n_frames - 1, most, dtype=torch.float64)]
