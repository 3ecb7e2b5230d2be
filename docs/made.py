"""Pages that are made of files elsewhere in the repository: the notebooks with their outputs, and the changelog."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
REPOSITORY = "https://github.com/lmm-lens/lmm-lens/blob/main/"
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)(#[^)]*)?\)")
LONGEST = 400
"""Characters of a picture's description."""


def made() -> dict[str, str | bytes]:
    """Every page and picture that is made, by its place in the documentation."""
    found: dict[str, str | bytes] = {"changelog.md": changelog()}
    for path in notebooks():
        text, pictures = page_of(path)
        found[f"tutorials/{path.stem}.md"] = text
        found |= {f"tutorials/{name}": picture for name, picture in pictures.items()}
    return found


def notebooks() -> list[Path]:
    """The tutorials, in their order."""
    return sorted((ROOT / "tutorials").glob("[0-9]*.ipynb"))


def changelog() -> str:
    """The changelog as a page."""
    return _linked((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), ROOT)


def page_of(path: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown with its outputs, and its pictures by name."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    pictures: dict[str, bytes] = {}
    parts = []
    for i, cell in enumerate(cells):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(_linked(source, path.parent))
            continue
        parts.append(f"```python\n{source.rstrip()}\n```")
        for kind, data in _outputs(cell):
            if kind == "image/png":
                name = f"{path.stem}_{len(pictures)}.png"
                pictures[name] = base64.b64decode(data)
                parts.append(f"![{_description(cells, i)}]({name})")
            else:
                parts.append(SHOWN[kind](data))
    title, _, rest = "\n\n".join(parts).partition("\n")
    where = f"*This page is the notebook [{path.name}]({REPOSITORY}tutorials/{path.name}), with the outputs it had.*"
    return f"{title}\n\n{where}\n{rest}\n", pictures


def _outputs(cell: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a cell shows, each in the richest form that a page can."""
    for output in cell["outputs"]:
        if output["output_type"] == "stream":
            yield "text/plain", "".join(output["text"])
            continue
        data = output["data"]
        kind = next(kind for kind in ("image/png", "text/html", "text/plain") if kind in data)
        yield kind, "".join(data[kind])


def _as_text(text: str) -> str:
    lines = "\n".join(line.rstrip() for line in text.strip("\n").splitlines())
    return f"```{{.text .output}}\n{lines}\n```"


def _as_html(text: str) -> str:
    """A table, or words in colours; a page of the viewer is linked to, since it would bring its own scripts."""
    if text.lstrip().startswith("<iframe"):
        return "*In the notebook the viewer opens here: [what it shows](../howto/viewer.md).*"
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r" (border=\"1\"|style=\"text-align: right;\")", "", text)
    text = text.replace(" alt=''", "").replace("<img ", "<img alt='The picture of the prompt that was asked about' ")
    text = text.replace("<th></th>", "<td></td>")
    return f'<div class="shown" tabindex="0">{" ".join(text.split())}</div>'


SHOWN: dict[str, Callable[[str], str]] = {"text/plain": _as_text, "text/html": _as_html}


def _description(cells: list[Mapping[str, Any]], i: int) -> str:
    """What a picture shows: what the notebook says below it, or else the section that it stands in."""
    below = next((c for c in cells[i + 1 :] if c["cell_type"] == "markdown"), None)
    said = "" if below is None else "".join(below["source"]).strip()
    if not said or said.startswith("#"):
        above = [line for c in cells[:i] for line in "".join(c["source"]).splitlines() if line.startswith("#")]
        said = f"A figure of the section: {above[-1].lstrip('# ')}"
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", said.split("\n\n")[0]).replace("\n", " ")
    plain = re.sub(r"[*`\[\]]", "", plain)
    return html.escape(plain if len(plain) < LONGEST else f"{plain[:LONGEST].rsplit(' ', 1)[0]} ...")


def _linked(text: str, folder: Path) -> str:
    """A text whose links lead to pages that are made here, or into the repository."""

    def place(found: re.Match[str]) -> str:
        target, anchor = found[1], found[2] or ""
        if target.endswith(".ipynb") and "/" not in target:
            return f"]({target.removesuffix('.ipynb')}.md{anchor})"
        inside = (folder / target).resolve().relative_to(ROOT).as_posix()
        return f"]({REPOSITORY}{inside}{anchor})"

    return LINK.sub(place, text)
