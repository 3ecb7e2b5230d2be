"""Pictures, and where each visual token lies in them: what the page draws its patches on.

A panel is one drawing: a picture, or one frame of a video, with patches that do not overlap. A model that sees a
picture twice, whole and in crops, gives two panels, so that the patches of both can be told apart.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from ..figures.sources import level_names, levels_of, name_of, picture_of, sources_of
from ..prompts.prompt import Prompt
from ..prompts.spans import Box, Span

if TYPE_CHECKING:
    from PIL.Image import Image

Edges = list[list[float]]

EDGE, FRAME_EDGE = 768, 320  # pixels of the longer side, of pictures and of frames
CELL, CELLS = 24.0, 16  # tokens whose place is not known: pixels of each, and how many in a line
JPEG_QUALITY = 88


@dataclass(frozen=True)
class Panel:
    """One drawing.

    Attributes:
        source: the picture or frame that it shows; panels of one source are looks at the same pixels.
        label: what it shows, in full.
        level: which look at the picture this is, where there are several: "overview", "detail", ...; "" otherwise.
        extent: what it spans, in pixels of the picture as given: the picture, and patches that reach over its edge.
        picture: the picture's own box and its data URL; None where only tensors were given, or no one picture is it.
        spans: the spans drawn on it.
        placed: whether it is known where the tokens lie; else they are drawn as cells in reading order.
    """

    source: str
    label: str
    level: str
    extent: Box
    picture: tuple[Box, str] | None
    spans: tuple[Span, ...]
    placed: bool = True

    def drawn(self, key_of: Mapping[int, int]) -> dict[str, Any]:
        """For the page: edges of the columns and rows of each grid, and tokens by their index among real ones."""
        grids = []
        for span in self.spans:
            columns, rows = edges(span) if self.placed else _cells(span)
            keys = [key_of[position] for position in span.positions]
            name = name_of(span) + (f", tile {span.tile}" if span.tile else "")
            grids.append({"name": name, "keys": keys, "columns": columns, "rows": rows})
        return {
            "source": self.source,
            "label": self.label,
            "level": self.level,
            "extent": _rounded(self.extent),
            "box": _rounded(self.picture[0]) if self.picture else None,
            "url": self.picture[1] if self.picture else None,
            "placed": self.placed,
            "grids": grids,
        }


def panels_of(prompt: Prompt, row: int) -> list[Panel]:
    """All drawings of a prompt row, in the order of its tokens."""
    return [panel for spans in sources_of(prompt, row) for panel in _of_source(prompt, row, spans)]


def edges(span: Span) -> tuple[Edges, Edges]:
    """Where each column and each row of a span's grid begins and ends, in pixels; there may be gaps between crops."""
    assert span.grid is not None
    rows, columns = span.grid
    across = [span.box(span.positions[column]) for column in range(columns)]
    down = [span.box(span.positions[row * columns]) for row in range(rows)]
    return [_rounded((box.x0, box.x1)) for box in across], [_rounded((box.y0, box.y1)) for box in down]


def _of_source(prompt: Prompt, row: int, spans: Sequence[Span]) -> Iterator[Panel]:
    """The drawings of one picture, or of one frame of a video."""
    name = name_of(spans[0])
    picture, caption = _picture(prompt, row, spans[0])
    label = f"{name}{caption}"
    placed = [span for span in spans if span.grid is not None and span.region is not None]
    lost = [span for span in spans if span not in placed]
    if lost and picture is not None:
        yield Panel(name, label, "", picture[0], picture, ())
    for span in lost:
        tile = f", part {span.tile}" if len(lost) > 1 else ""
        columns, rows = _cells(span)
        extent = Box(0, 0, columns[-1][1], rows[-1][1])
        said = f"{name}{tile}: {len(span)} token{'s' if len(span) > 1 else ''}, places not known"
        yield Panel(name, said, "", extent, None, (span,), False)
    levels = levels_of(placed)
    for names, level in zip(level_names(len(levels)), levels, strict=True):
        extent = _around([span.region for span in level if span.region] + ([picture[0]] if picture else []))
        grids = f"{label}{', ' + names if names else ''}: {_grids(level)}"
        yield Panel(name, grids, names, extent, picture, level)


def _grids(level: Sequence[Span]) -> str:
    """The grids of a level, as in `6 x 6` or `6 tiles of 3 x 3`."""
    shapes = [f"{rows} x {columns}" for rows, columns in (span.grid for span in level if span.grid)]
    parts = [f"{n} tiles of {shape}" if n > 1 else shape for shape, n in _counted(shapes)]
    return " + ".join(parts)


def _counted(items: Sequence[str]) -> list[tuple[str, int]]:
    return [(item, len(list(same))) for item, same in groupby(items)]


def _picture(prompt: Prompt, row: int, span: Span) -> tuple[tuple[Box, str] | None, str]:
    """What lies under a span as the page has it, and what to say of it."""
    picture, caption = picture_of(prompt, row, span)
    return (None if picture is None else _boxed(picture, EDGE if span.kind == "image" else FRAME_EDGE)), caption


def _boxed(picture: Image, edge: int) -> tuple[Box, str]:
    return Box(0, 0, *picture.size), picture_url(picture, edge)


def picture_url(picture: Image, edge: int) -> str:
    """A picture inside a URL, its longer side at most `edge` pixels; as PNG or as JPEG, whichever is smaller."""
    small = picture.convert("RGB")
    small.thumbnail((edge, edge))
    files = {}
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": JPEG_QUALITY})):
        buffer = io.BytesIO()
        small.save(buffer, kind, **options)
        files[kind] = buffer.getvalue()
    kind = min(files, key=lambda name: len(files[name]))
    return f"data:image/{kind};base64,{base64.b64encode(files[kind]).decode()}"


def _cells(span: Span) -> tuple[Edges, Edges]:
    columns = min(len(span), CELLS)
    rows = -(-len(span) // columns)
    across, down = ([[CELL * i, CELL * (i + 1)] for i in range(n)] for n in (columns, rows))
    return across, down


def _around(boxes: Sequence[Box]) -> Box:
    return Box(
        min(box.x0 for box in boxes),
        min(box.y0 for box in boxes),
        max(box.x1 for box in boxes),
        max(box.y1 for box in boxes),
    )


def _rounded(numbers: Sequence[float]) -> list[float]:
    return [round(float(number), 3) for number in numbers]
