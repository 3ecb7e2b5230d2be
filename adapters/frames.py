"""Videos whose frames follow each other in one run of video tokens, each a square grid: LLaVA's video models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmm_lens.errors import PromptError
from lmm_lens.prompts.spans import Box, Span

from .picture import covered, visible_region
from .row import BatchRow, TokenRun, equal_parts


def encoded(row: BatchRow, kind: str) -> Any:
    """The features of all pictures or videos, if the model is given these: `generate` encodes before it calls it."""
    outputs = (row.inputs.get("mm_encoder_outputs") or {}).get(kind)
    return None if outputs is None else outputs.pooler_output


def frame_regions(row: BatchRow, video_processor: Any, share: float) -> list[Box | None]:
    """The part of each video's frames that its patches cover; None where it is not known.

    Args:
        video_processor: resizes and crops every frame; None where the user processed the videos.
        share: how much of the tower's input its patches cover, from the left and from the top.
    """
    sizes = [clip.size for clip in row.clips or ()]
    return [covered(visible_region(video_processor, size), share) if video_processor else None for size in sizes]


def frame_spans(
    row: BatchRow,
    found: list[TokenRun],
    side: int,
    regions: Sequence[Box | None],
    whole: Box,
    lead: int = 0,
    tail: int = 0,
) -> list[Span]:
    """Spans of videos, one a frame of side x side tokens.

    Args:
        found: runs of video tokens; videos that follow each other without a token between form one run.
        side: tokens along one edge of a frame.
        regions: the part of each video's frames that the tokens cover, as far as known.
        whole: the region to use where it is not.
        lead: tokens before the patches of each frame that lie nowhere in it (a class token).
        tail: tokens after the last frame of each video (a newline vector).

    Raises:
        PromptError: a run is not a whole number of videos.
    """
    pixels, per_frame = row.inputs.get("pixel_values_videos"), lead + side * side
    if pixels is None:  # each video is one row of features, or each frame
        length = encoded(row, "video").shape[1]
        n_frames = (len(found[0]) if length == per_frame else length) // per_frame
    elif pixels.ndim == 5:
        n_frames = pixels.shape[1]
    else:
        raise PromptError(
            f"expected pixel_values_videos [video, frame, channel, height, width], given {tuple(pixels.shape)}\n"
            "  process text and videos with the model's own processor"
        )
    size = n_frames * per_frame + tail
    made = f"{n_frames} frames: {per_frame} a frame and {tail} at the end"
    spans: list[Span] = []
    video = 0
    for run in found:
        for part in equal_parts(run, size, "video", made):
            region = (regions[video] if video < len(regions) else None) or whole
            for frame in range(n_frames):
                at = frame * per_frame
                patches = part[at + lead : at + per_frame]
                if lead:
                    spans.append(Span("marker", part[at : at + lead], video=video, frame=frame))
                spans.append(Span("video", patches, None, 0, (side, side), region, video, frame))
            if tail:
                spans.append(Span("marker", part[size - tail :], video=video))
            video += 1
    return spans
