"""The page: everything of a view in one HTML text, without anything to fetch."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

from .scene import Scene

OUTSIDE = ("colour.js", "scenes.js")
"""Scripts that run once; the others do once a scene that is shown, inside one function."""
SCRIPTS = (
    "data.js",
    "state.js",
    "chosen.js",
    "heads.js",
    "pictures.js",
    "sheet.js",
    "tokens.js",
    "readout.js",
    "words.js",
    "pointer.js",
    "figure.js",
    "export.js",
    "main.js",
)


def render(scenes: Sequence[Scene], steps: Sequence[int]) -> str:
    """The HTML of a view.

    Args:
        scenes: what it shows, one at a time.
        steps: of each, see `packing`.
    """
    import jinja2

    abouts = [scene.about(each) for scene, each in zip(scenes, steps, strict=True)]
    style, script = part("page.css"), _script()
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lmm_lens.viewer", "assets"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        about=abouts[0],
        titles=[scene.title for scene in scenes],
        parts=[scene.part for scene in scenes],
        data=[_inside_html(about) for about in abouts],
        packed=[
            [side.packed(scene.tokens, each) for side in scene.sides] for scene, each in zip(scenes, steps, strict=True)
        ],
        style=style,
        script=script,
        allowed_style=_hash(style),
        allowed_script=_hash(script),
    )


def _script() -> str:
    outside, inside = ("".join(part(name) for name in names) for names in (OUTSIDE, SCRIPTS))
    return f'(() => {{\n"use strict";\n{outside}function draw(about, scene, closing, kept) {{\n{inside}}}\n}})();\n'


@cache
def part(name: str) -> str:
    """One of the files that a page is made of."""
    return resources.files("lmm_lens.viewer").joinpath("assets", name).read_text(encoding="utf-8")


def _inside_html(about: Any) -> str:
    """JSON that cannot end the script element it stands in, whatever words the tokens are."""
    return json.dumps(about, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _hash(text: str) -> str:
    """What a content security policy calls this text by."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
