"""Tables that more than one command prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from ..scoring import HeadScores


def head_table(scores: HeadScores, n: int, title: str, first_layer: int = 0) -> Table:
    """The n highest heads from a layer on, with their means and 95% bootstrap intervals; one prompt has none."""
    n_prompts = len(scores.per_prompt)
    said = "n = 1 prompt, which has no interval" if n_prompts == 1 else f"n = {n_prompts} prompts"
    columns = ("head", "value") if n_prompts == 1 else ("head", "mean", "95% interval")
    table = Table(*columns, title=f"{title}\n{said}", title_justify="left", min_width=min(len(title), 78))
    ranked = scores.to_pandas().query("layer >= @first_layer")
    for row in ranked.head(n).itertuples(index=False):
        interval = () if n_prompts == 1 else (f"{row.low:.3f} to {row.high:.3f}",)
        table.add_row(f"L{row.layer}H{row.head}", f"{row[2]:.3f}", *interval)
    return table
