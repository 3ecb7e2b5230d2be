"""A model family as prompts know one: how pictures stand in its text, and which tokens are visual.

An adapter (`lmm_lens.adapters`) is one. Prompts ask for nothing else of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from .spans import Span
from .turns import Turns


@dataclass(frozen=True)
class Picture:
    """What an adapter knows of one picture when it lays out its tokens.

    Attributes:
        index: which picture of its batch row, from 0.
        size: (width, height) of the picture as the user gave it.
    """

    index: int
    size: tuple[int, int]


@dataclass(frozen=True)
class Clip:
    """What an adapter knows of one video.

    Attributes:
        index: which video of its batch row, from 0.
        size: (width, height) of its frames as the user gave them.
        n_frames: how many frames the user gave; processors may drop or merge some.
    """

    index: int
    size: tuple[int, int]
    n_frames: int


class Family(Protocol):
    """What a prompt is made with; `lmm_lens.adapters.Adapter` documents each member."""

    model: Any
    processor: Any
    config: Any

    @property
    def family(self) -> str: ...
    @property
    def tokenizer(self) -> Any: ...
    @property
    def image_slot(self) -> str | None: ...
    @property
    def video_slot(self) -> str | None: ...
    @property
    def turns(self) -> Turns: ...
    @property
    def special_ids(self) -> frozenset[int]: ...

    def standing(self, kind: str) -> str: ...
    def arranged(self, pictures: list[list[Any]]) -> Any: ...
    def sequence(self, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]: ...
    def cross_keys(self, inputs: Mapping[str, Any]) -> Tensor | None: ...
    def spans(
        self,
        ids: Sequence[Sequence[int]],
        inputs: Mapping[str, Any],
        pictures: Sequence[Sequence[Picture]] | None = None,
        clips: Sequence[Sequence[Clip]] | None = None,
    ) -> list[tuple[Span, ...]]: ...
