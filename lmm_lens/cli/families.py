"""`lmm-lens families`: every family with an adapter, and what is known of it."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import support


def run(as_markdown: bool) -> None:
    """Print the table, for people or for the README."""
    if as_markdown:
        print(support.markdown())
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("family", no_wrap=True, style="bold")
    table.add_column("visual tokens, and what works", overflow="fold")
    for row in support.table():
        works = (("pixels to tokens", row.grid), ("videos", row.videos), ("TransformerLens", row.transformer_lens))
        marks = ", ".join(name if has else f"no {name}" for name, has in works)
        table.add_row(row.family, Text.assemble(row.what, "\n", (marks, "dim")))
    console = Console()
    console.print(table)
    console.print(
        "Backends native and nnsight take them all. Any other model with an image token works without a grid."
    )
