"""What a study is told: a YAML file.

    models:
      planted: demo                 # a bundled model (demo:plain, demo:emoji, ...), a Hub name, or a folder
      llava: {model: llava-hf/llava-1.5-7b-hf, dtype: float16, device_map: auto}
    data:                           # questions about pictures; a model may have data and text of its own
      adversarial: {kind: pope, annotations: coco_pope_adversarial.json, images: val2014}
    text:                           # heads alone: questions without a picture
      arithmetic: {kind: table, source: sums.jsonl, image: null}
    n: 500                          # the first so many of each data set
    settings: {queries: [last, answer], controls: 5}
    out: my-study

Paths are relative to the working directory. A config that lies in a study's folder goes on with that study.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LensError, unknown
from .config_files import check_keys, check_whole, read_values, save_values
from .network import stay_offline_if_unreached
from .opening import DTYPES
from .sweep_config import DATA_EXAMPLE

if TYPE_CHECKING:
    from ..data import DataSet
    from ..lens import Lens
    from ..studies import HeadSettings, SinkSettings, Subject

MODEL_KEYS = ["model", "dtype", "device_map", "backend", "data", "text"]
RUNS = "models"
"""In a study's folder: a folder for each model."""
EXAMPLE = "as in models: {planted: demo, plain: 'demo:plain'}"


@dataclass(frozen=True)
class StudyConfig:
    """A study, as it stands in a file.

    Attributes:
        models: by name: what to open, or {model, dtype, device_map, backend, data, text}.
        data: data sets by name, each with its kind and that kind's options; see `lmm_lens.data.named`.
        text: as data, of questions without a picture; of a study of heads.
        n: how many of each, the first ones; None for all.
        settings: of `lmm_lens.studies.HeadSettings` or `SinkSettings`.
        ray, changed, out: as in a sweep's config.

    Raises:
        LensError: a value that cannot be meant.
    """

    models: Mapping[str, Any]
    data: Mapping[str, Any]
    text: Mapping[str, Any] = field(default_factory=dict)
    n: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    ray: Any = None
    changed: str = "refuse"
    out: str = "lmm-lens-study"

    def __post_init__(self) -> None:
        if not isinstance(self.models, Mapping) or not self.models:
            raise LensError(f"models must have names, given {self.models!r}\n  {EXAMPLE}")
        if not isinstance(self.settings, Mapping):
            raise LensError(f"settings must be keys and values, given {self.settings!r}")
        for name, given in self.models.items():
            _check_model(str(name), given)
        _check_data("data", self.data, may_be_empty=False)
        _check_data("text", self.text)
        for name in ("changed", "out"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise LensError(f"{name} must be a text, given {getattr(self, name)!r}")
        if self.n is not None:
            check_whole("n", self.n, least=1)

    @classmethod
    def read(cls, path: Path, given: Mapping[str, Any]) -> StudyConfig:
        """The config in a file, flags over it.

        Raises:
            LensError: no such file, no YAML, or keys that are none.
        """
        values = read_values(path, "a study needs models and data")
        if "out" not in values and (path.parent / RUNS).is_dir():
            values = {**values, "out": os.fspath(path.parent)}
        merged = {**values, **given}
        check_keys("key of the config", merged, [each.name for each in fields(cls)])
        for name in ("models", "data"):
            if name not in merged:
                raise LensError(f"the config {path.name!r} names no {name}\n  {EXAMPLE}")
        return cls(**merged)

    def save(self, folder: Path) -> None:
        """Write it into the study's folder, without the folder's own name: it may be moved."""
        save_values({name: value for name, value in asdict(self).items() if name != "out"}, folder)

    def subjects(self) -> dict[str, Subject]:
        """The models, each to be opened when its turn comes, with its own data where it has any."""
        from ..studies import Subject

        found = {}
        for name, given in self.models.items():
            values: dict[str, Any] = {"model": given} if isinstance(given, str) else dict(given)
            own = {key: self.sets(values[key]) for key in ("data", "text") if key in values}
            found[str(name)] = Subject(_Opening(values), own.get("data"), own.get("text"))
        return found

    def sets(self, given: Mapping[str, Any]) -> dict[str, DataSet]:
        """Data sets by name, or their first samples."""
        from ..data import named

        every = {str(name): named(**options) for name, options in given.items()}
        return every if self.n is None else {name: each.take(self.n) for name, each in every.items()}

    def head_settings(self) -> HeadSettings:
        """Of a study of heads; LensError for a key that is none."""
        from ..studies import HeadSettings

        return HeadSettings(**_settings(HeadSettings, self.settings))

    def sink_settings(self) -> SinkSettings:
        """Of a study of sinks; LensError for a key that is none."""
        from ..studies import SinkSettings

        return SinkSettings(**_settings(SinkSettings, self.settings))


@dataclass(frozen=True)
class _Opening:
    """Opens a model that a config names."""

    values: Mapping[str, Any]

    def __call__(self) -> Lens:
        from ..lens import Lens

        model, backend = self.values["model"], self.values.get("backend", "native")
        if model.partition(":")[0] == "demo":
            return Lens.demo(model.partition(":")[2] or "sinks", backend=backend)
        stay_offline_if_unreached(model)
        placed = {key: self.values[key] for key in ("device_map",) if key in self.values}
        return Lens.from_pretrained(model, backend, dtype=self.values.get("dtype", "auto"), **placed)


def _check_model(name: str, given: Any) -> None:
    from ..studies.record import check_name

    check_name("model", name)
    if isinstance(given, str) and given:
        return
    if not isinstance(given, Mapping) or not isinstance(given.get("model"), str):
        raise LensError(f"the model {name!r} must be a name, or have one under model:, given {given!r}\n  {EXAMPLE}")
    check_keys(f"key of the model {name!r}", given, MODEL_KEYS)
    if given.get("dtype", "auto") not in DTYPES:
        raise LensError(unknown("dtype", given["dtype"], DTYPES))
    for key in ("data", "text"):
        if key in given:
            _check_data(f"{key} of the model {name!r}", given[key], may_be_empty=key == "text")


def _check_data(what: str, given: Any, may_be_empty: bool = True) -> None:
    from ..studies.record import check_name

    if not isinstance(given, Mapping) or not (given or may_be_empty):
        raise LensError(f"{what} must name data sets, given {given!r}\n  as in data: {{color: {{kind: shapes}}}}")
    for name, options in given.items():
        check_name("data set", name)
        if not isinstance(options, Mapping) or not isinstance(options.get("kind"), str):
            raise LensError(
                f"{what}: {name} must have a kind and that kind's options, given {options!r}\n  {DATA_EXAMPLE}"
            )


def _settings(kind: type[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    names = [each.name for each in fields(kind)]
    check_keys("key of the settings", given, names)
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
