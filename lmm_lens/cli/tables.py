"""Tables that more than one command prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from ..scoring import HeadScores


def head_table(scores: HeadScores, n: int, title: str, first_layer: int = 0) -> Table:
    """The n highest heads from a layer on, with their means and 95% bootstrap intervals."""
    table = Table("head", "mean", "95% interval", title=title, title_justify="left", min_width=len(title))
    ranked = scores.to_pandas().query("layer >= @first_layer")
    for row in ranked.head(n).itertuples(index=False):
        table.add_row(f"L{row.layer}H{row.head}", f"{row[2]:.3f}", f"{row.low:.3f} to {row.high:.3f}")
    return table
