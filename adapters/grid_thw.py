"""The layout of Qwen2-VL and its relatives: `image_grid_thw` and `video_grid_thw` give the patches of each source.

A picture of (1, h, w) patches makes one run of h/merge x w/merge tokens, row-major; each covers merge x merge patches.
A video of (t, h, w) makes t such grids, each of as many frames as the model takes together (two, mostly). They follow
each other in one run (Qwen2-VL) or stand apart, each between markers and beside its time stamp (Qwen3-VL, GLM-4V).
Processors resize the whole picture to whole tokens, without padding or cropping, so a grid covers all of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from typing import Any, ClassVar, Literal

from torch import Tensor

from lmm_lens.errors import PromptError
from lmm_lens.prompts.family import Clip, Picture
from lmm_lens.prompts.spans import Box, Span, runs

from .base import Adapter
from .row import BatchRow, TokenRun

Kind = Literal["image", "video"]
PatchGrid = tuple[int, int]  # rows, columns
LONGEST_STAMP = 24  # characters


class GridThw(Adapter):
    """Everything of the layout; a family adds its names."""

    has_grid = True
    takes_videos = True
    openers: ClassVar[tuple[str, ...]] = ("<|vision_start|>",)
    """Tokens that open a picture, a video or a frame."""
    closers: ClassVar[tuple[str, ...]] = ("<|vision_end|>",)
    opener_settings: ClassVar[tuple[str, ...]] = ("vision_start_token_id",)
    """Where the config names them, for use without a processor."""
    closer_settings: ClassVar[tuple[str, ...]] = ("vision_end_token_id",)
    stamp: ClassVar[re.Pattern[str] | None] = None
    """The time that stands before each grid of a video, in words."""

    @cached_property
    def opening(self) -> frozenset[int]:
        """Ids of the tokens that open a picture, a video or a frame."""
        return self.named(self.openers, self.opener_settings)

    @cached_property
    def closing(self) -> frozenset[int]:
        """Ids of the tokens that close them."""
        return self.named(self.closers, self.closer_settings)

    def named(self, tokens: tuple[str, ...], settings: tuple[str, ...]) -> frozenset[int]:
        """The ids of tokens by the processor's vocabulary, or else by the config."""
        ids = (self._token_id(setting) for setting in settings)
        return self.ids_of(*tokens) or frozenset(id_ for id_ in ids if id_ is not None)

    @property
    def video_slot(self) -> str | None:
        return super().video_slot if self.takes_videos else None

    @property
    def marker_ids(self) -> frozenset[int]:
        return self.opening | self.closing

    def standing(self, kind: str) -> str:
        # neighbours without a token between them would be one picture to the model
        index = 0 if kind == "image" else -1
        opener, closer = (names[index] if names else "" for names in (self.openers, self.closers))
        return f"{opener}{super().standing(kind)}{closer}"

    def merge(self, kind: Kind, inputs: Mapping[str, Any], entry: int) -> tuple[int, int]:
        """How many temporal patches, and patches along one edge, become one token of this entry of the tensors."""
        return 1, self.config.vision_config.spatial_merge_size

    def cells(self, kind: Kind, inputs: Mapping[str, Any], entry: int) -> tuple[PatchGrid, list[Sequence[int]]]:
        """The grid of an entry of the tensors, and for each frame which of its cells, row-major, have a token: all."""
        t, h, w = (int(n) for n in inputs[f"{kind}_grid_thw"][entry])
        together, merge = self.merge(kind, inputs, entry)
        rows, columns = h // merge, w // merge
        return (rows, columns), [range(rows * columns)] * (t // together)

    def spans(
        self,
        ids: Sequence[Sequence[int]],
        inputs: Mapping[str, Any],
        pictures: Sequence[Sequence[Picture]] | None = None,
        clips: Sequence[Sequence[Clip]] | None = None,
    ) -> list[tuple[Span, ...]]:
        spans = super().spans(ids, inputs, pictures, clips)
        for kind in ("image", "video"):
            n_given = len(inputs.get(f"{kind}_grid_thw", ()))
            n_found = sum(len({span.source for span in row if span.kind == kind}) for row in spans)
            if n_found < n_given:
                raise PromptError(
                    f"{kind}_grid_thw has {n_given} entries, but the text has tokens of {n_found} {kind}s only\n"
                    "  process text and pictures together, with the model's own processor"
                )
            name = "pixel_values" if kind == "image" else "pixel_values_videos"
            n_patches = sum(int(t * h * w) for t, h, w in inputs.get(f"{kind}_grid_thw", ()))
            if n_patches and isinstance(inputs.get(name), Tensor) and len(inputs[name]) != n_patches:
                raise PromptError(
                    f"{name} has {len(inputs[name])} patches, but {kind}_grid_thw tells of {n_patches}\n"
                    "  process text and pictures together, with the model's own processor"
                )
        return spans

    def images(self, row: BatchRow, found: list[TokenRun]) -> list[Span]:
        return self.lay_out("image", row, found)

    def videos(self, row: BatchRow, found: list[TokenRun]) -> list[Span]:
        spans = self.lay_out("video", row, found)
        return spans + [span for video in {span.video for span in spans} for span in self.stamps(row, spans, video)]

    def lay_out(self, kind: Kind, row: BatchRow, found: list[TokenRun]) -> list[Span]:
        """One span for each picture, or for each frame of a video as the model sees it."""
        first = row.first_picture if kind == "image" else row.first_clip
        n_entries = len(row.inputs.get(f"{kind}_grid_thw", ()))
        if not n_entries and not any(name.startswith("pixel_values") for name in row.inputs):
            return self.encoded(kind, row, first, found)
        spans: list[Span] = []
        left, index = list(reversed(found)), 0
        while left:
            entry = first + index
            if entry >= n_entries:
                raise PromptError(
                    f"the text has tokens of more than {n_entries} {kind}s, the entries of {kind}_grid_thw\n"
                    f"  expected {kind}_grid_thw with (frames, rows, columns) of patches for all {kind}s of the batch\n"
                    "  process text and pictures together, with the model's own processor"
                )
            grid, frames = self.cells(kind, row.inputs, entry)
            region = self.region(kind, row, index, entry)
            for frame, cells in enumerate(frames):
                run = left.pop() if left else ()
                if len(run) < len(cells):
                    raise PromptError(
                        f"{kind} {index} of the row has {grid[0]} x {grid[1]} tokens by {kind}_grid_thw, but the text "
                        f"has {len(run)} where its grid {frame} of {len(frames)} should be\n"
                        "  process text and pictures together, with the model's own processor"
                    )
                if len(run) > len(cells):
                    left.append(run[len(cells) :])
                source = {"image": index} if kind == "image" else {"video": index, "frame": frame}
                for positions, shape, box in pieces(run[: len(cells)], cells, grid, region):
                    spans.append(Span(kind, positions, grid=shape, region=box, **source))
            index += 1
        return spans

    def encoded(self, kind: Kind, row: BatchRow, first: int, found: list[TokenRun]) -> list[Span]:
        """Without grids: `model.generate` encodes pictures beforehand, and then hands over their features alone."""
        output = row.inputs.get("mm_encoder_outputs", {}).get(kind)
        sizes = self.n_tokens(kind, row.inputs, [len(features) for features in output.pooler_output] if output else [])
        sources = (index for index, n_tokens in enumerate(sizes[first:]) for _ in range(n_tokens))
        source_of = dict(zip((position for run in found for position in run), sources, strict=False))
        parts = (part for run in found for part in groupby(run, source_of.get))
        if kind == "image":
            return [Span(kind, tuple(positions), image=source) for source, positions in parts]
        return [Span(kind, tuple(positions), video=source) for source, positions in parts]

    def n_tokens(self, kind: Kind, inputs: Mapping[str, Any], n_features: list[int]) -> list[int]:
        """How many tokens each source has, of so many features: as many."""
        return n_features

    def region(self, kind: Kind, row: BatchRow, index: int, entry: int) -> Box:
        """All of a picture as the user gave it, or as it was processed where that is not known."""
        _, h, w = (int(n) for n in row.inputs[f"{kind}_grid_thw"][entry])
        patch = self.config.vision_config.patch_size
        given = row.size(index) if kind == "image" else row.clip_size(index)
        return Box(0, 0, *(given or (w * patch, h * patch)))

    def stamps(self, row: BatchRow, spans: list[Span], video: int | None) -> list[Span]:
        """The time stamps of a video: all that stands between its frames, and the outermost ones beside them."""
        own = [position for span in spans if span.video == video for position in span.positions]
        start, end = self._lead(row.ids, own[0]), self._outer(row.ids, own[-1], 1)
        known = {*own, *(position for position in range(start, end) if row.ids[position] in self.marker_ids)}
        return [Span("marker", run, video=video) for run in runs([p for p in range(start, end) if p not in known])]

    def _outer(self, ids: Sequence[int], edge: int, step: int) -> int:
        """Where the markers around a whole video are, on one side of it; the edge itself where there are none."""
        around = self.opening if step < 0 else self.closing
        position = edge + step
        if 0 <= position < len(ids) and ids[position] in around:
            position += step
            while 0 <= position < len(ids) and ids[position] not in self.marker_ids:
                position += step
            if 0 <= position < len(ids) and ids[position] in around:
                return position
        return edge

    def _lead(self, ids: Sequence[int], edge: int) -> int:
        """Where a video begins, its first stamp included; told by its words where no markers are around the video."""
        outer = self._outer(ids, edge, -1)
        if outer < edge or self.stamp is None or self.tokenizer is None:
            return outer
        text, position = "", edge - (edge > 0 and ids[edge - 1] in self.opening)
        while position > 0 and len(text) < LONGEST_STAMP:
            position -= 1
            text = self.tokenizer.decode([ids[position]]) + text
            if self.stamp.fullmatch(text):
                return position
        return edge


def pieces(
    positions: TokenRun, cells: Sequence[int], grid: PatchGrid, region: Box
) -> Iterator[tuple[TokenRun, PatchGrid, Box]]:
    """Rectangles of the cells that have tokens, as (positions, shape, region): the grid, or else stretches of rows."""
    rows, columns = grid
    if len(cells) == rows * columns:
        yield positions, grid, region
        return
    width, height = (region.x1 - region.x0) / columns, (region.y1 - region.y0) / rows
    # neighbours in one row of the grid differ by as much as their places in the list
    for _, group in groupby(enumerate(cells), key=lambda item: (item[1] - item[0], item[1] // columns)):
        places, stretch = zip(*group, strict=True)
        row, column = divmod(stretch[0], columns)
        x0, y0 = region.x0 + column * width, region.y0 + row * height
        box = Box(x0, y0, x0 + len(stretch) * width, y0 + height)
        yield tuple(positions[place] for place in places), (1, len(stretch)), box
