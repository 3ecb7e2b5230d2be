"""A prompt as a line of text and as a small piece of HTML: the sequence, with each picture as one block."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING

from .spans import Span

if TYPE_CHECKING:
    from PIL.Image import Image

    from .prompt import Prompt


def pieces(prompt: Prompt, row: int) -> Iterator[tuple[str, Span | None, tuple[int, ...]]]:
    """The sequence of one batch row as (role, span, positions), neighbours of one role together.

    Roles are those of `Prompt.role_names`.
    """
    owner = {position: span for span in prompt.spans[row] for position in span.positions}
    named = prompt.role_names(row)

    def role(position: int) -> tuple[str, int]:
        return named[position], owner[position].positions[0] if position in owner else 0

    visual = [span for span in prompt.spans[row] if span.kind != "marker"]
    within = {p for span in visual for p in range(span.positions[0], span.positions[-1] + 1)}
    shown: set[int] = set()  # a grid that row breaks cut into pieces is one piece
    for (name, _), group in groupby(range(prompt.n_tokens), key=role):
        positions = tuple(group)
        owned = owner.get(positions[0])
        if name == "marker" and positions[0] in within:
            continue
        if owned is not None and name != "marker":
            if id(owned) in shown:
                continue
            shown.add(id(owned))
            positions = owned.positions
        yield name, owned, positions


def describe(span: Span) -> str:
    """A span in brackets, as in `[image 0: 36 tokens, 6 x 6, at 2 to 37]`."""
    name = span.kind if span.source is None else f"{span.kind} {span.source}"
    tile = f" tile {span.tile}" if span.tile else ""
    tile += "" if span.frame is None else f" frame {span.frame}"
    grid = f", {span.grid[0]} x {span.grid[1]}" if span.grid else ""
    return f"[{name}{tile}: {len(span)} tokens{grid}, at {span.positions[0]} to {span.positions[-1]}]"


def as_text(prompt: Prompt) -> str:
    """One line a batch row."""
    lines = []
    for row in range(prompt.n_rows):
        parts = []
        for role, span, positions in pieces(prompt, row):
            if role == "pad":
                parts.append(f"[{len(positions)} pad]")
            elif span is not None and role != "marker":
                parts.append(describe(span))
            else:
                parts += [prompt.tokens[row][position] for position in positions]
        lines.append(f"row {row}: {' '.join(parts)}")
    return "\n".join(lines)


ROLE_COLORS = {  # of lines under and around words, which keep the page's own colour and so can be read on any
    "image": "#0072b2",
    "video": "#0072b2",
    "marker": "#7f7f7f",
    "bos": "#7f7f7f",
    "pad": "#7f7f7f",
    "before_image": "currentcolor",
    "question": "currentcolor",
    "answer_turn": "#009e73",
    "template": "#7f7f7f",
}


def as_html(prompt: Prompt, thumbnail: int = 96) -> str:
    """The sequence with each picture drawn as a block with its patch grid; hovering a token shows its position."""
    rows = []
    for row in range(prompt.n_rows):
        parts = []
        for role, span, positions in pieces(prompt, row):
            if role == "pad":
                parts.append(f"<span>[{len(positions)} pad]</span>")
            elif span is not None and role != "marker":
                parts.append(_block(prompt, span, row, thumbnail))
            else:
                style = f"border-bottom:2px solid {ROLE_COLORS[role]}"
                parts += [
                    f"<span title='{role.replace('_', ' ')}, position {position}' style='{style}'>"
                    f"{html.escape(prompt.tokens[row][position])}</span>"
                    for position in positions
                ]
        rows.append(f"<div style='line-height:2;margin:.4em 0'>{' '.join(parts)}</div>")
    return f"<div style='font-family:ui-monospace,monospace;font-size:13px'>{''.join(rows)}</div>"


def _block(prompt: Prompt, span: Span, row: int, size: int) -> str:
    picture = ""
    if span.image is not None and span.image < len(prompt.images[row]) and span.region and span.grid:
        crop = prompt.images[row][span.image].convert("RGB").crop(span.region)
        grid = (
            f"background:repeating-linear-gradient(#fff6 0 1px,transparent 1px {size / span.grid[0]}px),"
            f"repeating-linear-gradient(90deg,#fff6 0 1px,transparent 1px {size / span.grid[1]}px)"
        )
        picture = (
            f"<span style='display:inline-block;position:relative;width:{size}px;height:{size}px'>"
            f"<img alt='{html.escape(describe(span))}, with the grid of its patches' width={size} height={size} "
            f"style='display:block' src='{data_url(crop.resize((size, size)))}'>"
            f"<span style='position:absolute;inset:0;{grid}'></span></span><br>"
        )
    border = f"2px solid {ROLE_COLORS[span.kind]}"
    style = f"display:inline-block;vertical-align:middle;border:{border};padding:4px;line-height:1.3"
    return f"<span style='{style}'>{picture}{html.escape(describe(span))}</span>"


def data_url(image: Image) -> str:
    """A picture as a PNG inside a URL, for HTML that needs no other file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
