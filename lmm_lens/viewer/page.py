"""The page: everything of a view in one HTML text, without anything to fetch."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

from ..hooks.heads import HeadSet
from ..prompts.prompt import Prompt
from .masses import Map
from .packing import floats, pack_weights, steps_for
from .panels import panels_of
from .reading import ShownAttention
from .sequence import pieces_of, roles_of

SCRIPTS = ("colour.js", "data.js", "state.js", "heads.js", "pictures.js", "tokens.js", "readout.js", "main.js")


def render(
    attention: ShownAttention,
    prompt: Prompt,
    row: int,
    maps: Sequence[Map],
    title: str,
    model: str,
    mark: HeadSet | None,
) -> str:
    """The HTML of a view.

    Args:
        attention: what was read.
        prompt: whose it is.
        row: batch row.
        maps: numbers of the heads, the one shown first in front.
        title: heading of the page.
        model: a line that says what model this is.
        mark: heads to outline.
    """
    import jinja2

    real = prompt.mask("all")[row]
    positions = real.nonzero().flatten().tolist()
    key_of = {position: key for key, position in enumerate(positions)}
    values = attention.values[..., real]
    steps = steps_for(values.numel())
    known = attention.sinks.of_layer
    panels = [panel.drawn(key_of) for panel in panels_of(prompt, row)]
    about: dict[str, Any] = {
        "title": title,
        "model": model,
        "positions": positions,
        "texts": [prompt.tokens[row][position] for position in positions],
        "roles": roles_of(prompt, row),
        "pieces": pieces_of(prompt, row, key_of),
        "panels": panels,
        "layers": attention.layers,
        "heads": attention.heads,
        "queries": [key_of[position] for position in attention.queries],
        "steps": steps,
        "maps": [{"name": m.name, "label": m.label, "meaning": m.meaning, "unit": m.unit} for m in maps],
        "values": [floats(each.values) for each in maps],
        "sinks": None if known is None else [[key_of[p] for p in known.get(layer, ())] for layer in attention.layers],
        "sinkRule": attention.sinks.about,
        "omitted": attention.omitted,
        "next": attention.next_tokens,
        "mark": [] if mark is None else [list(head) for head in mark],
    }
    style, script = _part("page.css"), "".join(_part(name) for name in SCRIPTS)
    script = f'(() => {{\n"use strict";\n{script}}})();\n'
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lmm_lens.viewer", "assets"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        about=about,
        data=_inside_html(about),
        packed=[pack_weights(each, steps) for each in values],
        queries=[(index, prompt.tokens[row][p], p) for index, p in enumerate(attention.queries)],
        style=style,
        script=script,
        allowed_style=_hash(style),
        allowed_script=_hash(script),
        n_levels=len({panel["level"] for panel in panels} - {""}),
        steps=steps,
    )


@cache
def _part(name: str) -> str:
    return resources.files("lmm_lens.viewer").joinpath("assets", name).read_text(encoding="utf-8")


def _inside_html(about: Any) -> str:
    """JSON that cannot end the script element it stands in, whatever words the tokens are."""
    return json.dumps(about, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _hash(text: str) -> str:
    """What a content security policy calls this text by."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
