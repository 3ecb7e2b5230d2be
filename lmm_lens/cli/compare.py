"""`lmm-lens compare CONFIG`: conditions on the same questions, resumable, with paired tests and controls."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

from ..errors import printable
from ..reports.folder import CONFIG
from .compare_config import RUN, CompareConfig, conditions_from
from .config_files import begin_folder, free_folder
from .opening import open_data, open_lens
from .sweep_config import ray_of
from .waiting import shows_bars

if TYPE_CHECKING:
    from ..comparisons import Comparison

TABLE, TESTS, ANSWERS, FIGURE = "conditions.csv", "tests.csv", "answers.csv", "comparison.png"
"""Files in a comparison's folder."""


def run(path: Path, flags: Mapping[str, Any]) -> None:
    """Run a comparison, or go on with one; print its tables, and write them and a figure.

    Args:
        path: of a config.
        flags: by the names of the command's parameters; None where nothing was said.

    Raises:
        LensError: of the config, the data set, the model or the folder.
    """
    from ..comparisons.metrics import ComparedMetric

    said = {name: str(value) if name == "out" else value for name, value in flags.items() if value is not None}
    config = CompareConfig.read(path, said)
    console = Console()
    ComparedMetric.of(config.metric)  # before the model is loaded
    folder = free_folder(Path(config.out), RUN, "comparison")
    data = open_data(config)
    lens = open_lens(config, console)
    conditions = conditions_from(config, lens)
    if begin_folder(folder, RUN):
        config.save(folder)
    from ..comparisons import compare

    try:
        compared = compare(
            lens,
            data,
            conditions,
            config.metric,
            baseline=config.baseline,
            controls=config.controls,
            seed=config.seed,
            max_new_tokens=config.max_new_tokens,
            folder=folder / RUN,
            ray=ray_of(config.ray),
            changed=config.changed,
            progress=shows_bars(),
        )
    except KeyboardInterrupt:
        console.print(
            f"interrupted; what is finished is safe, go on with: lmm-lens compare {folder / CONFIG}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(130) from None
    config.save(folder)
    _show(compared, folder, console)


def _show(compared: Comparison, folder: Path, console: Console) -> None:
    import pandas

    from ..figures.axes import save_figure

    values, tests = compared.to_pandas(), compared.tests()
    title = f"{compared.metric}, n = {len(compared.ids)} items"
    table = Table("condition", "value", "95% interval", "edits", "s", title=title, title_justify="left")
    for row in values.to_dict("records"):
        interval = f"{row['low']:.3f} to {row['high']:.3f}" if row["n"] > 1 else "one item"
        table.add_row(
            printable(row["condition"]), f"{row['value']:.3f}", interval, f"{row['edits']:.1f}", f"{row['seconds']:.2f}"
        )
    console.print(table)
    if len(tests):
        table = Table("condition", "against", "difference", "95% interval", "p (Holm)", "test")
        for row in tests.to_dict("records"):
            cells = (f"{row['difference']:+.3f}", f"{row['low']:+.3f} to {row['high']:+.3f}", f"{row['p_holm']:.2g}")
            table.add_row(printable(row["condition"]), printable(row["against"]), *cells, row["test"])
        console.print(table)
    for note in compared.notes:
        console.print(printable(note), markup=False, highlight=False)
    if compared.left_out:
        console.print(printable(str(compared.problems)), markup=False, highlight=False)
    answers = {"id": compared.ids, **{name: compared.said(name) for name in compared.names}}
    for name, written in ((TABLE, values), (TESTS, tests), (ANSWERS, pandas.DataFrame(answers))):
        written.to_csv(folder / name, index=False)
    save_figure(compared.plot(), folder / FIGURE)
    console.print(f"tables, answers and figure: {folder}", markup=False, highlight=False, soft_wrap=True)
