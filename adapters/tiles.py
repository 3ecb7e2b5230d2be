"""Pictures cut into tiles: a row-major grid of crops at full detail, and a thumbnail of the whole.

A processor writes each picture as tiles of placeholders with tags around them, and the tags tell (nearly) everything:
where a picture begins and ends, how many crops it has, in most families in how many rows. A family declares its tags
(`tags`) and what a picture looks like (`picture`, a regular expression over them); the rest is common arithmetic.
Tile 0 is the thumbnail, or the only crop; tiles 1.. are the crops, row by row, whatever their order in the text.
"""

from __future__ import annotations

import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal

from torch import Tensor

from lmm_lens.errors import PromptError
from lmm_lens.prompts.spans import Box, Span, runs

from .base import Adapter
from .row import BatchRow, TokenRun

Size = tuple[int, int]  # width, height
Shape = tuple[int, int]  # rows, columns
Frame = tuple[int, int]  # video, frame


class Tiled(Adapter, ABC):
    """A family whose pictures are tiles of placeholders between tags."""

    has_grid = True
    picture: ClassVar[str]
    """What a picture looks like: a regular expression over the letters of its tokens, `i` for a placeholder."""
    thumbnail_first: ClassVar[bool] = False
    """Whether the thumbnail comes before the crops."""
    frame_label: ClassVar[str] = ""
    """What precedes a video's frames, which hold the same placeholders as pictures: a regular expression over text."""

    @property
    @abstractmethod
    def tags(self) -> Mapping[str, Sequence[str]]:
        """Letter -> the tokens, as text, that it stands for in `picture`. Every other token is a full stop."""

    @property
    @abstractmethod
    def shuffle(self) -> int:
        """How many patches along an edge are merged into one token."""

    @abstractmethod
    def shape(self, letters: str, ids: Sequence[int], n_crops: int, size: Size | None) -> Shape | None:
        """Rows and columns of a picture's crops; None where neither its tokens nor its size tell."""

    def tokens_like(self, form: str) -> list[str]:
        """The tokens of the vocabulary that have this form, a regular expression."""
        return [token for token in self.vocabulary if re.fullmatch(form, token)]

    @cached_property
    def vocabulary(self) -> Sequence[str]:
        """All tokens; listing them takes a while."""
        return list(self.tokenizer.get_vocab())

    def shape_of_tags(self, letters: str, ids: Sequence[int]) -> Shape:
        """The row and the column that the last `T` tag of a picture names, counted from 1."""
        rows, columns = re.findall(r"\d+", self.tokenizer.convert_ids_to_tokens(ids[letters.rindex("T")]))
        return int(rows), int(columns)

    @cached_property
    def letters(self) -> dict[int, str]:
        """Token id -> its letter in `picture`. Without a processor only the placeholder is known."""
        known = {} if self.processor is None else self.tags
        found = {id_: letter for letter, texts in known.items() for id_ in self.ids_of(*texts)}
        return {**found, int(self.image_token_id or 0): "i"}

    def spans(self, ids: Any, inputs: Mapping[str, Any], pictures: Any = None, clips: Any = None) -> list[Any]:
        expected = self.n_tokens(inputs)
        n_found = sum(list(row).count(self.image_token_id) for row in ids)
        if expected is not None and n_found and n_found != expected:
            raise PromptError(
                f"the text has {n_found} image tokens, but the model makes {expected} of these pixels "
                f"{tuple(inputs['pixel_values'].shape)}\n"
                "  process text, pictures and videos in one call of the model's own processor, and cut nothing off"
            )
        return super().spans(ids, inputs, pictures, clips)

    def images(self, row: BatchRow, found: list[TokenRun]) -> list[Span]:
        text = "".join(self.letters.get(id_, ".") for id_ in row.ids)
        matches = list(re.finditer(self.picture, text))
        if not matches and set(text) <= {"i", "."}:  # no tag, or none is known by name, for want of a processor
            return super().images(row, found)
        taken = [(match.start(), match.end()) for match in matches]
        inside = {position for start, end in taken for position in range(start, end)}
        left = [position for run in found for position in run if position not in inside]
        if left:
            raise PromptError(
                f"{len(left)} image tokens from position {left[0]} on are not between the tags of {self.family}\n"
                f"  expected them as its processor writes them, {self.picture!r} with {dict(self.tags)}\n"
                "  process text and pictures with the model's own processor"
            )
        frames = self.frames(row, taken)
        n_pictures = frames.count(None)
        n_clips = len({frame[0] for frame in frames if frame is not None})
        for kind, n_found, given in (("picture", n_pictures, row.pictures), ("video", n_clips, row.clips)):
            if given is not None and len(given) != n_found:
                raise PromptError(
                    f"{len(given)} {kind}{'s' * (len(given) != 1)} given, but the text holds the tokens of {n_found}\n"
                    "  leave the tags that the processor writes out of the text"
                )
        numbers = iter(range(n_pictures))
        owners = [frame if frame is not None else next(numbers) for frame in frames]
        return [span for m, owner in zip(matches, owners, strict=True) for span in self._spans(row, m, owner)]

    def _spans(self, row: BatchRow, match: re.Match[str], owner: Frame | int) -> Iterator[Span]:
        """The tiles and the tags of one picture (owner: which), or of a frame (owner: the video and the frame)."""
        start, letters = match.start(), match[0]
        held = [start + i for i, letter in enumerate(letters) if letter == "i"]
        around = [start + i for i, letter in enumerate(letters) if letter != "i"]
        kind: Literal["image", "video"] = "image" if isinstance(owner, int) else "video"
        named: dict[str, Any]
        if isinstance(owner, int):
            named, size = {"image": owner}, row.size(owner)
            grids = self.grids(row, owner, held)
        else:
            named, size = {"video": owner[0], "frame": owner[1]}, row.clip_size(owner[0])
            grids = self.grids(row, 0, held)
        crops, thumbnail = self._roles(letters, len(grids))
        shape = (1, 1) if len(crops) == 1 else self.shape(letters, row.ids[start : match.end()], len(crops), size)
        if shape is not None and shape[0] * shape[1] != len(crops):
            shape = None
        taken = 0
        region: Box | None
        for index, grid in enumerate(grids):
            positions = tuple(held[taken : taken + grid[0] * grid[1]])
            taken += len(positions)
            if index == thumbnail:
                tile, region = 0, self._whole(row, grid, shape and (shape, grids[crops[0]]), size)
            else:
                tile = crops.index(index) + (len(grids) > 1)
                region = shape and self._crop(row, grid, shape, crops.index(index), size)
            yield Span(kind, positions, tile=tile, grid=region and grid, region=region, **named)
        for run in runs(around):
            yield Span("marker", run, **named)

    def _roles(self, letters: str, n_tiles: int) -> tuple[list[int], int | None]:
        """Which of a picture's tiles, in the order of the text, are crops, and which is the thumbnail."""
        if not self.has_thumbnail(letters, n_tiles):
            return list(range(n_tiles)), None
        thumbnail = 0 if self.thumbnail_first else n_tiles - 1
        return [index for index in range(n_tiles) if index != thumbnail], thumbnail

    def _crop(self, row: BatchRow, grid: Shape, shape: Shape, number: int, size: Size | None) -> Box:
        """The region of a crop. It reaches over the edge of the picture where the processor pads."""
        width, height = self.tile_of(row, grid)
        filled = self.scaled(shape, (width, height), size) if size else (1, 1)
        left, top = number % shape[1] * width, number // shape[1] * height
        return self._region(left, top, grid, size or (1, 1), filled)

    def _whole(self, row: BatchRow, grid: Shape, crops: tuple[Shape, Shape] | None, size: Size | None) -> Box:
        """The region of a thumbnail: the whole picture; of unknown size, as large as its crops together."""
        tile = self.tile_of(row, grid)
        if size is None and crops is not None:
            (rows, columns), (width, height) = crops[0], self.tile_of(row, crops[1])
            size = columns * width, rows * height
        return self._region(0, 0, grid, size or tile, tile)

    def _region(self, left: int, top: int, grid: Shape, size: Size, filled: tuple[float, float]) -> Box:
        """Tokens from a corner on, in pixels of a picture of this size that was scaled to `filled`."""
        x, y = size[0] / filled[0], size[1] / filled[1]
        right, bottom = left + grid[1] * self.token_size[0], top + grid[0] * self.token_size[1]
        return Box(left * x, top * y, right * x, bottom * y)

    @property
    def token_size(self) -> Size:
        """Width and height of the processed pixels that one token covers."""
        height, width = pair(self.config.vision_config.patch_size)
        return width * self.shuffle, height * self.shuffle

    def tile_size(self, inputs: Mapping[str, Any]) -> Size:
        """Width and height of a tile in processed pixels."""
        pixels = inputs.get("pixel_values")
        height, width = pair(self.config.vision_config.image_size) if pixels is None else pixels.shape[-2:]
        return width, height

    def tile_grid(self, inputs: Mapping[str, Any]) -> Shape:
        """Rows and columns of the tokens of a tile."""
        (width, height), (across, down) = self.tile_size(inputs), self.token_size
        return height // down, width // across

    def n_tokens(self, inputs: Mapping[str, Any]) -> int | None:
        """How many tokens the model makes of the pixels of a batch; None where there are none."""
        pixels = inputs.get("pixel_values")
        if pixels is None:
            return None
        tiles = pixels.flatten(0, -4)
        rows, columns = self.tile_grid(inputs)
        return (n_real(tiles.flatten(1)) if pixels.ndim == 5 else len(tiles)) * rows * columns

    def grids(self, row: BatchRow, index: int, held: list[int]) -> list[Shape]:
        """The grid of each tile of a picture, in the order of the text; `held` are its placeholders.

        Raises:
            PromptError: they are no whole number of tiles.
        """
        rows, columns = self.tile_grid(row.inputs)
        n_tiles, rest = divmod(len(held), rows * columns)
        if rest:
            raise PromptError(
                f"{len(held)} image tokens at positions {held[0]} to {held[-1]} are no whole number of tiles\n"
                f"  this model makes {rows * columns} tokens of each tile, {rows} x {columns}\n"
                "  process text and pictures with the model's own processor"
            )
        return [(rows, columns)] * n_tiles

    def has_thumbnail(self, letters: str, n_tiles: int) -> bool:
        """Whether one of a picture's tiles is a thumbnail."""
        return n_tiles > 1

    def scaled(self, shape: Shape, tile: Size, size: Size) -> tuple[float, float]:
        """Width and height to which a picture is scaled before it is cut; by default it fills all crops."""
        return shape[1] * tile[0], shape[0] * tile[1]

    def tile_of(self, row: BatchRow, grid: Shape) -> Size:
        """Width and height in processed pixels of a tile with this grid."""
        return self.tile_size(row.inputs)

    def frames(self, row: BatchRow, taken: list[tuple[int, int]]) -> list[Frame | None]:
        """For each picture in a row's text: the video and frame that it is, None where it is a picture."""
        found: list[Frame | None] = [None] * len(taken)
        if not self.frame_label or self.tokenizer is None or (row.clips is not None and not row.clips):
            return found
        end, last, n_videos = 0, None, 0  # of what came before
        for index, (start, after) in enumerate(taken):
            before = self.tokenizer.decode(list(row.ids[max(end, start - 40) : start]))
            if re.search(self.frame_label + "$", before):
                follows = last is not None and re.fullmatch("\n" + self.frame_label, before)
                last = (last[0], last[1] + 1) if follows and last else (n_videos, 0)
                n_videos = last[0] + 1
            else:
                last = None
            found[index], end = last, after
        return found


def pair(value: Any) -> tuple[int, int]:
    """One number for both edges, or (height, width)."""
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


def canvas(image_processor: Any, name: str, size: Size) -> Shape:
    """Rows and columns of crops that an image processor chooses for a picture, by this function of its module."""
    homes = (sys.modules[kind.__module__] for kind in type(image_processor).__mro__)
    choose = next(getattr(home, name) for home in homes if hasattr(home, name))
    own = image_processor
    tile = (own.size["height"], own.size["width"])
    columns, rows = choose((size[1], size[0]), tile, own.min_patches, own.max_patches)
    return rows, columns


def n_real(tiles: Tensor) -> int:
    """How many tiles, pixels in one row each, are no padding, which is all zeros; most show it in their first pixels.

    >>> import torch
    >>> tiles = torch.zeros(3, 100)
    >>> tiles[0, 1] = tiles[2, 99] = 1.0
    >>> n_real(tiles)
    2
    """
    seen = tiles[:, :64].any(1)
    return int(seen.sum()) + int(tiles[~seen].any(1).sum())
