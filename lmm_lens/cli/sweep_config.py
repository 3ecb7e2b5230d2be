"""What a sweep is told: a YAML file, flags over it, and defaults under both.

    model: demo                   # or a Hub name, or a folder
    data: {kind: pope, annotations: coco_pope_adversarial.json, images: val2014, on_bad: skip}
    heads: {top: 20, of: visual_mass.safetensors}   # or all, or layers: [2, 3], or [[3, 1], [4, 0]]
    controls: {number: 20, seed: 0}
    n: 500
    out: my-sweep

Paths are relative to the working directory. A config that lies in a sweep's folder goes on with that sweep.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LensError
from ..reports.folder import EFFECTS
from ..runs import RayCluster, RayLike
from ..runs.ray_cluster import as_cluster
from .config_files import EMPTY_SWEEP, are_whole, check_keys, check_whole, read_values, save_values

if TYPE_CHECKING:
    from ..hooks.heads import HeadSet
    from ..lens import Lens


@dataclass(frozen=True)
class Controls:
    """Random head sets with the same layer spread as the chosen heads.

    Attributes:
        number: how many; 0 for no comparison.
        seed: of the first draw.
    """

    number: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole("controls: number", self.number, least=0)
        check_whole("controls: seed", self.seed, least=0)


@dataclass(frozen=True)
class SweepConfig:
    """A sweep, as it stands in a file.

    Attributes:
        model: a Hub name, a local folder, or "demo".
        dtype, device_map: for `Lens.from_pretrained`.
        backend: of the lens.
        data: the kind of data set, and its options; see `lmm_lens.data.named`.
        n: how many prompts, the first ones; None for all.
        ablation, rows, metric: as in `head_effects`.
        heads: "all", {"layers": [...]}, [[layer, head], ...] or {"top": n, "of": a file of scores}.
        controls: random sets to compare the chosen heads with.
        ray: None, a number of local workers, the address of a cluster, or the fields of a `RayCluster`, as in
            {workers: 8, num_gpus: 1, address: auto}.
        seed: of everything else that is drawn.
        changed: what to do with rows that are not what they were when the folder got their results: "refuse", or
            "recompute".
        out: the folder.

    Raises:
        LensError: a value that cannot be meant.
    """

    model: str = "demo"
    dtype: str = "auto"
    device_map: str | None = None
    backend: str = "native"
    data: Mapping[str, Any] = field(default_factory=lambda: {"kind": "shapes"})
    n: int | None = None
    ablation: str = "zero"
    rows: str = "last"
    metric: str = "log_prob"
    heads: Any = "all"
    controls: Controls = field(default_factory=Controls)
    ray: Any = None
    seed: int = 0
    changed: str = "refuse"
    out: str = "lmm-lens-sweep"

    def __post_init__(self) -> None:
        for name in ("model", "dtype", "backend", "ablation", "rows", "metric", "changed", "out"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise LensError(f"{name} must be a text, given {value!r}")
        if not isinstance(self.data, Mapping) or not isinstance(self.data.get("kind"), str):
            raise LensError(f"data must have a kind and that kind's options, given {self.data!r}\n  {DATA_EXAMPLE}")
        if self.n is not None:
            check_whole("n", self.n, least=1)
        check_whole("seed", self.seed, least=0)
        _check_heads(self.heads)
        as_cluster(ray_of(self.ray))

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> SweepConfig:
        """A config of what a file says; LensError for keys that no config has."""
        check_keys("key of the config", values, [each.name for each in fields(cls)])
        controls = values.get("controls", {})
        if not isinstance(controls, (Mapping, Controls)):
            raise LensError(f"controls must be {{number: ..., seed: ...}}, given {controls!r}")
        if isinstance(controls, Mapping):
            check_keys("key of controls", controls, [each.name for each in fields(Controls)])
            controls = Controls(**controls)
        return cls(**{**values, "controls": controls})

    @classmethod
    def read(cls, path: Path, flags: Mapping[str, Any]) -> SweepConfig:
        """The config of a file, with flags over it.

        Args:
            path: a YAML file; in a sweep's folder, `out` is that folder.
            flags: what was said on the command line, by key; of data and controls also single entries.

        Raises:
            LensError: no such file, no YAML, no such key, or a value that cannot be meant.
        """
        values = read_values(
            path,
            EMPTY_SWEEP,
        )
        if "out" not in values and (path.parent / EFFECTS).is_dir():
            values = {**values, "out": os.fspath(path.parent)}
        return cls.from_values(_over(values, flags))

    @classmethod
    def of_flags(cls, flags: Mapping[str, Any]) -> SweepConfig:
        """The config of flags alone."""
        return cls.from_values(_over({}, flags))

    def save(self, folder: Path) -> None:
        """Write it into the sweep's folder, without the folder's own name: it may be moved."""
        save_values({name: value for name, value in asdict(self).items() if name != "out"}, folder)


DATA_EXAMPLE = "as in data: {kind: pope, annotations: coco_pope_random.json, images: val2014}"
HEADS_EXAMPLE = "all, {layers: [2, 3]}, [[3, 1], [4, 0]] or {top: 20, of: scores.safetensors}"


def heads_from(spec: Any, lens: Lens) -> HeadSet:
    """The heads that a config names.

    Raises:
        HookError: heads or layers that the model does not have.
        ScoreError: the file of scores cannot be read, or is of another model.
    """
    from ..hooks.heads import HeadSet
    from ..scoring import HeadScores

    pairs = [(layer, head) for layer, n in enumerate(lens.shape.n_heads) for head in range(n)]
    every = HeadSet(pairs, lens.n_layers, lens.n_heads)
    if spec == "all":
        return every
    if isinstance(spec, Mapping) and "layers" in spec:
        return every & HeadSet.all(lens.n_layers, lens.n_heads, spec["layers"])
    if isinstance(spec, Mapping):
        return HeadScores.load(spec["of"], lens).top(spec["top"])
    return HeadSet([tuple(head) for head in spec], lens.n_layers, lens.n_heads)


def ray_of(spec: Any) -> RayLike:
    """The workers that a config names; LensError where it names none."""
    if not isinstance(spec, Mapping):
        workers: RayLike = spec
        return workers
    check_keys("key of ray", spec, [each.name for each in fields(RayCluster)])
    return RayCluster(**spec)


def _check_heads(spec: Any) -> None:
    pairs = isinstance(spec, (list, tuple)) and spec
    valid = (
        spec == "all"
        or (pairs and all(isinstance(x, (list, tuple)) and len(x) == 2 and are_whole(x) for x in spec))
        or (isinstance(spec, Mapping) and set(spec) == {"layers"} and are_whole(spec["layers"]) and spec["layers"])
        or (isinstance(spec, Mapping) and set(spec) == {"top", "of"} and are_whole([spec["top"]]))
    )
    if not valid:
        raise LensError(f"heads must be {HEADS_EXAMPLE}, given {spec!r}")


def _over(values: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """Flags over a file's values: single entries of data and controls replace single entries, another kind all."""
    merged = dict(values)
    for key, value in flags.items():
        before = merged.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            same_kind = value.get("kind", before.get("kind")) == before.get("kind")
            value = {**before, **value} if key == "controls" or same_kind else value
        merged[key] = value
    return merged
