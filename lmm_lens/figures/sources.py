"""Which pictures and frames a prompt's visual tokens belong to, and how often each was looked at.

A model that sees a picture twice, whole and in crops, has two looks at it, so that the patches of both can be told
apart; within a look no two patches overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..prompts.prompt import Prompt
from ..prompts.spans import Span

if TYPE_CHECKING:
    from PIL.Image import Image


def sources_of(prompt: Prompt, row: int) -> list[list[Span]]:
    """The visual spans of a prompt row, those of one picture or frame together, in the order of its tokens."""
    sources: dict[Any, list[Span]] = {}
    for number, span in enumerate(span for span in prompt.spans[row] if span.kind != "marker"):
        known = span.source is not None
        sources.setdefault((span.kind, span.source, span.frame) if known else number, []).append(span)
    return list(sources.values())


def levels_of(spans: Sequence[Span]) -> list[tuple[Span, ...]]:
    """Spans sorted into levels in which none overlaps another, the one with the largest patches first."""
    levels: list[list[Span]] = []
    for span in spans:
        assert span.region is not None
        free = (level for level in levels if not any(span.region.overlaps(s.region) for s in level if s.region))
        level = next(free, None)
        if level is None:
            levels.append([span])
        else:
            level.append(span)
    return [tuple(level) for level in sorted(levels, key=lambda level: -_patch_area(level))]


def level_names(n: int) -> list[str]:
    """What the levels of one source are called: nothing where there is one, else "overview", "detail", ..."""
    return [""] if n == 1 else ["overview", "detail", *(f"detail {number}" for number in range(2, n))][:n]


def name_of(span: Span) -> str:
    """What a span belongs to, as in `image 0` or `video 1, frame 3`."""
    name = span.kind if span.source is None else f"{span.kind} {span.source}"
    return name if span.frame is None else f"{name}, frame {span.frame}"


def picture_of(prompt: Prompt, row: int, span: Span) -> tuple[Image | None, str]:
    """The picture under a span, and what to say of it; None where no one picture is known to."""
    if span.kind == "image":
        pictures = prompt.images[row]
        if span.image is None or span.image >= len(pictures):
            return None, " (no picture was given)"
        return pictures[span.image], ""
    films = prompt.videos[row] if row < len(prompt.videos) else ()
    if span.video is None or span.video >= len(films):
        return None, " (no frames were given)"
    if span.frame is None:
        return None, " (all frames)"
    together = _frames_together(prompt, row, span.video)
    first = span.frame * together
    if not together or first >= len(films[span.video]):
        return None, f" (which of the {len(films[span.video])} given frames is not known)"
    last = min(first + together, len(films[span.video])) - 1
    return films[span.video][first], f" (given {first} and {last})" if last > first else ""


def _frames_together(prompt: Prompt, row: int, video: int) -> int:
    """How many given frames each frame of the model is made of; 0 where the processor may have dropped some."""
    n_given = len(prompt.videos[row][video])
    n_seen = 1 + max(s.frame for s in prompt.spans[row] if s.video == video and s.frame is not None)
    if n_seen == n_given:
        return 1
    return 2 if "video_grid_thw" in prompt.inputs and n_seen == -(-n_given // 2) else 0


def _patch_area(level: Sequence[Span]) -> float:
    first = level[0].box(level[0].positions[0])
    return (first.x1 - first.x0) * (first.y1 - first.y0)
