"""A study over several models: one after the other, each into a folder of its own, and then side by side."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data import DataSet
from ..errors import ScoreError
from ..lens import Lens
from ..runs import RayLike
from .across import correlations, summary
from .head_study import HeadSettings, study_heads
from .record import FILE, Record, check_name
from .sink_settings import SinkSettings
from .sink_study import study_sinks

if TYPE_CHECKING:
    import pandas

Opening = Callable[[], Lens]


@dataclass(frozen=True, eq=False)
class Subject:
    """A model of a study that has data of its own.

    Attributes:
        lens: it, or a function that opens it when its turn comes, so that one model at a time is in memory.
        data: questions about pictures, by name; None for the study's.
        text: questions without a picture, by name; None for the study's.
    """

    lens: Lens | Opening
    data: Mapping[str, DataSet] | None = None
    text: Mapping[str, DataSet] | None = None

    def open(self) -> Lens:
        """The model."""
        return self.lens if isinstance(self.lens, Lens) else self.lens()


@dataclass(frozen=True)
class Study:
    """What was found in several models.

    Attributes:
        records: one a model.
    """

    records: tuple[Record, ...]

    @classmethod
    def load(cls, *folders: str | os.PathLike[str]) -> Study:
        """Of models' folders, or of studies' folders, in which models' folders lie.

        Raises:
            ScoreError: there is no study, one is damaged, or they are different studies.
        """
        records = tuple(record for folder in folders for record in _records_in(Path(folder)))
        kinds = sorted({record.study for record in records})
        if len(kinds) != 1:
            raise ScoreError(f"a study is of heads or of sinks, given {' and '.join(kinds) or 'nothing'}")
        return cls(records)

    @property
    def kind(self) -> str:
        """ "heads" or "sinks"."""
        return self.records[0].study

    @cached_property
    def claims(self) -> pandas.DataFrame:
        """Every claim on every model and data set: what was measured, with interval and control, and the verdict."""
        import pandas

        return pandas.DataFrame([{"model": r.name, **claim} for r in self.records for claim in r["claims"]])

    def table(self, name: str) -> pandas.DataFrame:
        """A table of all records, as "depth", "agreement", "removal"; of sinks "tokens", "conditions", "tests".

        Raises:
            ScoreError: the records have none of this name.
        """
        import pandas

        known = [key for key, value in self.records[0].content.items() if isinstance(value, list) and key != "claims"]
        if name not in known:
            raise ScoreError(f"there is no table {name!r}, only {', '.join(known)}")
        return pandas.DataFrame([{"model": r.name, **row} for r in self.records for row in r[name]])

    @cached_property
    def summary(self) -> pandas.DataFrame:
        """One row a model: family, size, where its top heads lie or what its sinks are, how many claims hold."""
        return summary(self.records)

    @cached_property
    def across(self) -> pandas.DataFrame:
        """Every two models of a study of heads: Spearman's correlation of their profiles by relative depth."""
        return correlations(self.records)

    def write(self, folder: str | os.PathLike[str]) -> Path:
        """Write tables, figures and `report.md` into a folder, which must exist; gives the report's path."""
        from .report import write_report

        return write_report(self, Path(folder))

    def __repr__(self) -> str:
        names = ", ".join(record.name for record in self.records)
        counted = self.claims["verdict"].value_counts()
        said = ", ".join(f"{n} {verdict}" for verdict, n in counted.items())
        return f"Study of {self.kind} in {names}: of {len(self.claims)} claims tested {said}"

    def _repr_html_(self) -> str:
        return self.claims.round(3).to_html(index=False)


def _records_in(folder: Path) -> Iterator[Record]:
    inside = sorted(folder.glob(f"*/{FILE}")) if folder.is_dir() and not (folder / FILE).exists() else []
    if inside:
        yield from map(Record.load, inside)
    else:
        yield Record.load(folder)


def heads(
    models: Mapping[str, Lens | Opening | Subject],
    data: Mapping[str, DataSet],
    *,
    text: Mapping[str, DataSet] | None = None,
    settings: HeadSettings | None = None,
    folder: str | os.PathLike[str] | None = None,
    ray: RayLike = None,
    changed: str = "refuse",
    progress: bool = False,
) -> Study:
    """The study of vision heads: where they lie, whether rankings agree, what answers lose without them.

        study = heads({"planted": Lens.demo(), "plain": lambda: Lens.demo("plain")}, {"shapes": shapes(100)})
        study.claims; study.summary; study.across

    Args:
        models: by name: a lens, a function that opens one, or a `Subject` with data of its own.
        data: questions about pictures, by name.
        text: questions without a picture, by name.
        settings: what else it depends on.
        folder: a folder for each model is made in it; run again, the study goes on where it was.
        ray, changed, progress: as in `head_effects`.

    Raises:
        ScoreError: no models, or as `study_heads` says.
    """
    chosen, spare = settings or HeadSettings(), text or {}

    def one(name: str, subject: Subject, going: dict[str, Any]) -> Record:
        own = data if subject.data is None else subject.data
        return study_heads(subject.open(), name, own, spare if subject.text is None else subject.text, chosen, **going)

    return Study(tuple(_each("heads", models, one, folder, ray, changed, progress)))


def sinks(
    models: Mapping[str, Lens | Opening | Subject],
    data: Mapping[str, DataSet],
    *,
    settings: SinkSettings | None = None,
    folder: str | os.PathLike[str] | None = None,
    ray: RayLike = None,
    changed: str = "refuse",
    progress: bool = False,
) -> Study:
    """The study of attention sinks: what and where they are, what masking them costs, what VAR does and costs.

    Arguments and errors as of `heads`; see `SinkSettings`.
    """
    chosen = settings or SinkSettings()

    def one(name: str, subject: Subject, going: dict[str, Any]) -> Record:
        return study_sinks(subject.open(), name, data if subject.data is None else subject.data, chosen, **going)

    return Study(tuple(_each("sinks", models, one, folder, ray, changed, progress)))


def _each(
    kind: str,
    models: Mapping[str, Lens | Opening | Subject],
    one: Callable[[str, Subject, dict[str, Any]], Record],
    folder: str | os.PathLike[str] | None,
    ray: RayLike,
    changed: str,
    progress: bool,
) -> Iterator[Record]:
    if not models:
        raise ScoreError('a study needs models by name, as in {"planted": Lens.demo()}')
    for name in models:
        check_name("model", name)
    for name, given in models.items():
        subject = given if isinstance(given, Subject) else Subject(given)
        own = None
        if folder is not None:
            own = Path(folder) / name
            own.mkdir(parents=True, exist_ok=True)
            _check_kind(own, kind)
        yield one(name, subject, {"folder": own, "ray": ray, "changed": changed, "progress": progress})
        _let_go()


def _check_kind(folder: Path, kind: str) -> None:
    """ScoreError for a folder in which another study is finished."""
    if (folder / FILE).exists() and Record.load(folder).study != kind:
        other = Record.load(folder).study
        raise ScoreError(f"the folder {folder.name!r} holds a study of {other}, not of {kind}\n  give another folder")


def _let_go() -> None:
    """Give the last model's memory back before the next is opened."""
    import gc

    import torch

    gc.collect()
    with suppress(RuntimeError):
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
