"""What a comparison is told: a YAML file.

    model: demo                   # or a Hub name, or a folder
    data: {kind: pope, annotations: coco_pope_adversarial.json, images: val2014}
    conditions:
      plain: []
      VAR: [{intervention: VAR, task: hallucination}]
      without 20 heads: [{intervention: AblateHeads, heads: {top: 20, of: visual_mass.safetensors}, rows: after_image}]
      saved: interventions.json   # what lmm_lens.interventions.to_json wrote
      blank: {pictures: blank}
    metric: yes_no_pope
    controls: 5
    out: my-comparison

Paths are relative to the working directory. A config that lies in a comparison's folder goes on with that comparison.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LensError
from .config_files import EMPTY_COMPARISON, check_keys, check_whole, read_values, save_values
from .sweep_config import DATA_EXAMPLE, heads_from

if TYPE_CHECKING:
    from ..comparisons import Condition
    from ..interventions.base import Intervention
    from ..lens import Lens

RUN = "run"
"""In a comparison's folder: the run of its answers."""


@dataclass(frozen=True)
class CompareConfig:
    """A comparison, as it stands in a file.

    Attributes:
        conditions: by name: a list of interventions, each as `to_json` writes it (heads may be chosen as in a sweep; of
            VAR `task` takes the paper's settings); the name of a file that `to_json` wrote; or pictures: blank or
            swapped, with `interventions` beside it or without.
        metric: as in `lmm_lens.compare`, but no function.
        baseline: a condition; the first by default.
        controls: random controls to draw for each condition that edits anything.
        seed: of the first draw.
        max_new_tokens: None for what the metric needs.
        model, dtype, device_map, backend, data, n, ray, changed, out: as in a sweep's config.

    Raises:
        LensError: a value that cannot be meant.
    """

    conditions: Mapping[str, Any]
    model: str = "demo"
    dtype: str = "auto"
    device_map: str | None = None
    backend: str = "native"
    data: Mapping[str, Any] = field(default_factory=lambda: {"kind": "shapes"})
    n: int | None = None
    metric: str = "exact_match"
    baseline: str | None = None
    controls: int = 0
    seed: int = 0
    max_new_tokens: int | None = None
    ray: Any = None
    changed: str = "refuse"
    out: str = "lmm-lens-comparison"

    def __post_init__(self) -> None:
        for name in ("model", "dtype", "backend", "metric", "changed", "out"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise LensError(f"{name} must be a text, given {getattr(self, name)!r}")
        if not isinstance(self.conditions, Mapping) or not self.conditions:
            raise LensError(f"conditions must have names, given {self.conditions!r}\n  {EXAMPLE}")
        if not isinstance(self.data, Mapping) or not isinstance(self.data.get("kind"), str):
            raise LensError(f"data must have a kind and that kind's options, given {self.data!r}\n  {DATA_EXAMPLE}")
        for name, least in (("n", 1), ("max_new_tokens", 1), ("controls", 0), ("seed", 0)):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), least)

    @classmethod
    def read(cls, path: Path, flags: Mapping[str, Any]) -> CompareConfig:
        """The config of a file, with flags over it.

        Raises:
            LensError: no such file, no YAML, no such key, or a value that cannot be meant.
        """
        values = read_values(path, EMPTY_COMPARISON)
        if "out" not in values and (path.parent / RUN).is_dir():
            values = {**values, "out": os.fspath(path.parent)}
        merged = {**values, **flags}
        check_keys("key of the config", merged, [each.name for each in fields(cls)])
        if "conditions" not in merged:
            raise LensError(f"the config {path.name!r} names no conditions\n  {EXAMPLE}")
        return cls(**merged)

    def save(self, folder: Path) -> None:
        """Write it into the comparison's folder, without the folder's own name: it may be moved."""
        save_values({name: value for name, value in asdict(self).items() if name != "out"}, folder)


EXAMPLE = "as in conditions: {plain: [], VAR: [{intervention: VAR, task: general}]}"


def conditions_from(config: CompareConfig, lens: Lens) -> dict[str, Condition]:
    """The conditions that a config names.

    Raises:
        LensError: things that are no conditions or interventions, or that the model does not have.
    """
    return {str(name): _condition(str(name), spec, lens) for name, spec in config.conditions.items()}


def _condition(name: str, spec: Any, lens: Lens) -> Condition:
    from ..comparisons import Condition

    if isinstance(spec, Mapping) and "intervention" not in spec:
        check_keys(f"key of the condition {name!r}", spec, ["interventions", "pictures"])
        given, pictures = spec.get("interventions", []), spec.get("pictures", "own")
    else:
        given, pictures = spec, "own"
    return Condition(tuple(_interventions(name, given, lens)), pictures)


def _interventions(name: str, given: Any, lens: Lens) -> list[Intervention]:
    from ..interventions import from_json

    if isinstance(given, str):
        try:
            return from_json(Path(given).read_text(encoding="utf-8"))
        except OSError as error:
            raise LensError(f"the interventions {given!r} of {name!r} cannot be read: {error.strerror}") from error
    listed = [given] if isinstance(given, Mapping) else given
    if not isinstance(listed, list) or not all(isinstance(each, Mapping) for each in listed):
        raise LensError(f"the condition {name!r} must list interventions, given {given!r}\n  {EXAMPLE}")
    return [_intervention(dict(each), lens) for each in listed]


def _intervention(values: dict[str, Any], lens: Lens) -> Intervention:
    from ..interventions import VAR, Intervention

    if "heads" in values and values.get("intervention") != "Knockout":
        values["heads"] = heads_from(values["heads"], lens)
    if values.get("intervention") == "VAR" and "task" in values:
        task, rest = values["task"], {k: v for k, v in values.items() if k not in ("task", "intervention")}
        return VAR.for_task(task, lens, **rest)
    return Intervention.from_dict(values)
