"""`lmm-lens view MODEL --image ... --question ...`: one page that shows where every head looks."""

from __future__ import annotations

import webbrowser
from pathlib import Path

from rich.console import Console

from ..errors import HookError, LensError, unknown
from .opening import load
from .waiting import waiting


def run(
    name: str, images: list[Path], question: str, queries: str, tower: bool, out: Path, opens: bool, dtype: str
) -> None:
    """Ask about some pictures, write the page, and open it in the browser if asked.

    Raises:
        LensError: no such number format or row scope, a picture or a model that cannot be opened.
    """
    with waiting("starting"):
        from ..prompts.prompt import MASKS
        from ..viewer import view

    if queries not in MASKS:
        raise HookError(unknown("row scope", queries, MASKS))
    if out.is_dir():
        raise LensError(f"{str(out)!r} is a folder\n  give the name of the page: --out {out / 'view.html'}")
    console = Console()
    lens = load(name, dtype, console)
    prompt = lens.prompt(question, images=list(images))
    with waiting("reading attention"):
        made = view(prompt, lens, queries=queries, tower=tower)
    out.parent.mkdir(parents=True, exist_ok=True)
    path = made.save(out).resolve()
    console.print(f"wrote {path} ({made.size / 1e6:.1f} MB)", markup=False, highlight=False, soft_wrap=True)
    if opens and not webbrowser.open(path.as_uri()):
        console.print("no browser could be started here: open the file in one")
