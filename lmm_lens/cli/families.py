"""`lmm-lens families`: every family with an adapter, and what is known of it."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from . import support


def run(as_markdown: bool) -> None:
    """Print the table, for people or for the README."""
    if as_markdown:
        print(support.markdown())
        return
    table = Table(
        "family", "visual tokens", "pixels", "videos", "TransformerLens", title="families", title_justify="left"
    )
    for row in support.table():
        marks = ["yes" if each else "[dim]no[/]" for each in (row.grid, row.videos, row.transformer_lens)]
        table.add_row(row.family, row.what, *marks)
    console = Console()
    console.print(table)
    console.print(
        "Backends native and nnsight take them all. Any other model with an image token works without a grid."
    )
