"""A study written up: tables as CSV, figures as PNG, and `report.md`, which says what was found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..figures.axes import save_figure
from ..runs import disk
from . import figures
from .record import Record

if TYPE_CHECKING:
    import pandas

    from .study import Study

REPORT = "report.md"
TITLES = {"heads": "Vision heads", "sinks": "Attention sinks and VAR"}
TABLES = {"heads": ("depth", "agreement", "removal"), "sinks": ("evidence", "tokens", "conditions", "tests", "seconds")}


def write_report(study: Study, folder: Path) -> Path:
    """Write everything into a folder, which must exist.

    Raises:
        ScoreError: it cannot be written to.
    """
    with disk.told(f"the report of the study could not be written to {str(folder)!r}"):
        study.claims.to_csv(folder / "claims.csv", index=False)
        study.summary.to_csv(folder / "summary.csv", index=False)
        for name in TABLES[study.kind]:
            study.table(name).to_csv(folder / f"{name}.csv", index=False)
        if len(study.across):
            study.across.to_csv(folder / "across.csv", index=False)
        drawn = list(_figures(study, folder))
        text = "\n\n".join(_paragraphs(study, drawn)) + "\n"
        disk.replace(folder / REPORT, text.encode())
    return folder / REPORT


def _paragraphs(study: Study, drawn: Sequence[str]) -> Iterator[str]:
    names = ", ".join(record.name for record in study.records)
    yield f"# {TITLES[study.kind]}: {names}"
    yield "\n".join(f"- {_about(record)}" for record in study.records)
    yield "## Claims"
    yield (
        "Value with its 95% interval, and what it is set against. A claim holds or is contradicted where that says so; "
        "else it is open. `claims.csv` has statistics and notes in full."
    )
    yield markdown(_claims(study.claims))
    yield "\n".join(f"- {note}" for note in _statistics(study.claims))
    yield "## Models"
    yield markdown(study.summary)
    if len(study.across):
        yield markdown(study.across)
    if study.kind == "sinks":
        yield "## Sinks"
        yield "\n".join(f"- {record.name}: {record['found']['said']}" for record in study.records)
        yield "## What a reader must know"
        yield "\n".join(f"- {note}" for record in study.records for note in _notes(record)) or "Nothing."
    if drawn:
        yield "## Figures"
        yield "\n\n".join(f"![{name.removesuffix('.png')}]({name.replace(' ', '%20')})" for name in drawn)


def _notes(record: Record) -> list[str]:
    """What its comparisons say of themselves, of VAR in the paper's setting alone; the record has all of it."""
    paper = {(row["data"], row["condition"]) for row in record["conditions"] if row["paper"]}
    return [
        f"{record.name}, {row['data']}: {row['note']}"
        for row in record["notes"]
        if "VAR p=" not in row["note"] or any(row["data"] == data and name in row["note"] for data, name in paper)
    ]


def _about(record: Record) -> str:
    model = record["model"]
    data = ", ".join(f"{name} ({each['n']})" for name, each in record["data"].items())
    weights = f"weights {model['weights'][:8]}"
    if "applied" in model:
        weights += f", under {', '.join(model['applied'])}"
    return (
        f"**{record.name}**: {model['id']}, {model['class']}, {model['n_parameters'] / 1e6:.4g} million parameters, "
        f"{model['n_layers']} layers x {model['n_heads']} heads, {model['dtype']}, {weights}; "
        f"sinks: {record['sinks']['source']}; data: {data}"
    )


def _claims(claims: pandas.DataFrame) -> pandas.DataFrame:
    import pandas

    rows = []
    for row in claims.to_dict("records"):
        rows.append(
            {
                "claim": row["claim"],
                "model": row["model"],
                "data": row["data"],
                "": f"**{row['verdict']}**",
                "value": _number(row["value"]) + _interval(row["low"], row["high"]),
                "control": _number(row["control_value"]),
                "p": _number(row["p"], 2),
                "n": row["n"],
            }
        )
    order = list(dict.fromkeys(claims["claim"]))
    rows.sort(key=lambda row: order.index(row["claim"]))
    return pandas.DataFrame(rows)


def _statistics(claims: pandas.DataFrame) -> list[str]:
    """What was measured for each claim, once."""
    first = claims.drop_duplicates("claim").to_dict("records")
    return [
        f"*{row['claim']}* ({row['source']}): {row['statistic']}"
        + (f"; control: {row['control']}" if row["control"] else "")
        for row in first
    ]


def _interval(low: float | None, high: float | None) -> str:
    return "" if _number(low) == "–" else f" ({_number(low)} to {_number(high)})"


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None or value != value else f"{value:.{digits}g}"


def markdown(table: pandas.DataFrame) -> str:
    """A table as Markdown, numbers to three digits."""
    rows = [
        [_number(each) if isinstance(each, float) else str(each).replace("|", "\\|") for each in row]
        for row in table.itertuples(index=False, name=None)
    ]
    lines = [list(table.columns), ["---"] * len(table.columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _figures(study: Study, folder: Path) -> Iterator[str]:
    """Draw them; gives the names of their files."""
    if study.kind == "heads":
        save_figure(figures.depth_profiles(study.records), folder / "depth.png")
        yield "depth.png"
    for record in study.records:
        yield from _heads(study, record, folder) if study.kind == "heads" else _sinks(study, record, folder)


def _heads(study: Study, record: Record, folder: Path) -> Iterator[str]:
    settings = record["settings"]
    first = next(iter(record["maps"]))
    name = f"map {record.name}.png"
    save_figure(figures.head_map(record, first, settings["rank_by"], settings["queries"][0]), folder / name)
    yield name
    table = study.table("removal")
    for outcome in ("accuracy", "log_prob"):
        name = f"removal {outcome} {record.name}.png"
        save_figure(figures.removal_curves(table[table["model"] == record.name], outcome), folder / name)
        yield name


def _sinks(study: Study, record: Record, folder: Path) -> Iterator[str]:
    ax = figures.sink_places(record)
    if ax is not None:
        save_figure(ax, folder / f"places {record.name}.png")
        yield f"places {record.name}.png"
    if not record["conditions"]:
        return
    table, tests = (each[each["model"] == record.name] for each in (study.table("conditions"), study.table("tests")))
    for data in dict.fromkeys(table["data"]):
        name = f"var {record.name} {data}.png"
        save_figure(figures.var_grid(table[table["data"] == data], tests[tests["data"] == data]), folder / name)
        yield name
