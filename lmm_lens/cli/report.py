"""`lmm-lens report FOLDER`: what a sweep found, printed, drawn and as a page."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import printable
from .waiting import waiting

N_PRINTED = 10


def run(folder: Path) -> None:
    """Report on a sweep that is finished, or on what it has so far.

    Raises:
        ScoreError: the folder is no sweep's, or no prompt is finished yet.
    """
    show(folder, Console())


def show(folder: Path, console: Console) -> None:
    """Print a sweep's tables, and write its figures and its page."""
    from ..reports.sweep import COLUMNS, Sweep, write_sweep_report

    with waiting("testing"):
        sweep = Sweep.open(folder)
        rows = sweep.rows(N_PRINTED)
    facts = Table(show_header=False, box=None, pad_edge=False)
    facts.add_column(style="bold", no_wrap=True)
    for name, value in sweep.facts().items():
        facts.add_row(name, Text(printable(value)))  # not str: what a data set says may look like rich's markup
    console.print(facts)
    table = Table(
        *COLUMNS,
        title=f"the {len(rows)} largest effects of {len(sweep.table)}, n = {sweep.effects.n_prompts} prompts",
        title_justify="left",
    )
    for row in rows:
        table.add_row(*map(printable, row))
    console.print(table)
    for said in (sweep.verdict(), sweep.compared()):
        if said:
            console.print(printable(said), markup=False, highlight=False)
    with waiting("drawing"):
        page = write_sweep_report(sweep)
    console.print(f"table, figures and report: {page}", markup=False, highlight=False, soft_wrap=True)
