"""`lmm-lens study heads|sinks CONFIG`: one of the two papers' studies on several models, resumable, written up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

from ..errors import LensError, printable
from ..reports.folder import CONFIG
from .config_files import begin_folder, free_folder
from .study_config import RUNS, StudyConfig
from .sweep_config import ray_of

if TYPE_CHECKING:
    from ..studies import Study
    from ..studies.plan import Plan


def run(kind: str, path: Path, flags: Mapping[str, Any]) -> None:
    """Run a study, or go on with one; print what holds, and write tables, figures and a report.

    Args:
        kind: "heads" or "sinks".
        path: of a config.
        flags: by the names of the command's parameters; None where nothing was said.

    Raises:
        LensError: of the config, a data set, a model or the folder.
    """
    from ..studies import heads, sinks

    only_plan = bool(flags.get("plan"))
    said = {name: value for name, value in flags.items() if value is not None and name != "plan"}
    config = StudyConfig.read(path, {name: str(value) if name == "out" else value for name, value in said.items()})
    console = Console()
    settings: Any = config.head_settings() if kind == "heads" else config.sink_settings()
    if kind == "sinks" and config.text:
        raise LensError("a study of sinks takes no text: sinks are asked about with pictures\n  leave text out")
    subjects, data = config.subjects(), config.sets(config.data)
    if only_plan:
        for name, subject in subjects.items():
            _show_plan(_planned(kind, name, subject, data, config, settings), console)
        return
    folder = free_folder(Path(config.out), RUNS, "study")
    if begin_folder(folder, RUNS):
        config.save(folder)
    going: Any = {"folder": folder / RUNS, "ray": ray_of(config.ray), "changed": config.changed, "progress": True}
    try:
        if kind == "heads":
            study = heads(subjects, data, text=config.sets(config.text), settings=settings, **going)
        else:
            study = sinks(subjects, data, settings=settings, **going)
    except KeyboardInterrupt:
        said_so = f"interrupted; what is finished is safe, go on with: lmm-lens study {kind} {folder / CONFIG}"
        console.print(said_so, markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(130) from None
    config.save(folder)
    _show(study, folder, console)


def _planned(kind: str, name: str, subject: Any, data: Any, config: StudyConfig, settings: Any) -> Plan:
    from ..studies.plan import plan_heads, plan_sinks

    own = data if subject.data is None else subject.data
    lens = subject.open()
    if kind == "sinks":
        return plan_sinks(lens, name, own, settings)
    return plan_heads(lens, name, own, config.sets(config.text) if subject.text is None else subject.text, settings)


def _show_plan(plan: Plan, console: Console) -> None:
    table = Table("data", "stage", "samples", "forwards", "hours", "MB", title=plan.model, title_justify="left")
    for row in plan.to_pandas().to_dict("records"):
        samples = "stream" if row["samples"] is None or row["samples"] != row["samples"] else f"{row['samples']:,.0f}"
        cells = (samples, f"{row['forwards']:,.0f}", f"{row['hours']:.2g}", f"{row['megabytes']:.3g}")
        table.add_row(printable(row["data"]), row["stage"], *cells)
    console.print(table)
    console.print(printable(repr(plan)), markup=False, highlight=False, soft_wrap=True)


def _show(study: Study, folder: Path, console: Console) -> None:
    title = f"study of {study.kind}"
    table = Table("claim", "model", "data", "", "value", "95% interval", "control", "p", title=title)
    for row in study.claims.to_dict("records"):
        value, low, high, control, p = (_said(row[key]) for key in ("value", "low", "high", "control_value", "p"))
        interval = "" if low == "–" else f"{low} to {high}"
        named = (printable(str(row[key])) for key in ("claim", "model", "data", "verdict"))
        table.add_row(*named, value, interval, control, p)
    console.print(table)
    written = study.write(folder)
    console.print(f"report, tables and figures: {written}", markup=False, highlight=False, soft_wrap=True)


def _said(number: float | None) -> str:
    return "–" if number is None or number != number else f"{number:.3g}"
