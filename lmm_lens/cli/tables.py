"""Tables that more than one command prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from ..scoring import HeadScores


def head_table(scores: HeadScores, n: int, title: str) -> Table:
    """The n highest heads with their means and 95% bootstrap intervals."""
    table = Table("head", "mean", "95% interval", title=title, title_justify="left", min_width=len(title))
    for row in scores.to_pandas().head(n).itertuples(index=False):
        table.add_row(f"L{row.layer}H{row.head}", f"{row[2]:.3f}", f"{row.low:.3f} to {row.high:.3f}")
    return table
