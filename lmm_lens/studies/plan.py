"""What a study will cost, measured on its first samples: forwards, seconds, memory, disk.

Every stage of the study runs on the first samples of each data set, in memory, and what it took a sample is multiplied.
What a stage does once, whatever its length, is no part of that: it runs on one sample first, whose forwards are taken
off, and the time in which all weights are read for the model's identity is taken off, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..comparisons import compare
from ..data import DataSet
from ..effects import head_effects
from ..runs import files
from ..warnings import NothingChangedWarning, counted
from .curves import ablate
from .head_study import HeadSettings, check_data, choose, sinks_of
from .looks import look
from .sink_settings import SinkSettings
from .sink_study import conditions

if TYPE_CHECKING:
    import pandas

    from ..lens import Lens

N_MEASURED = 2
"""Samples that a plan is measured on."""

Stage = Callable[[DataSet], Any]


@dataclass(frozen=True)
class PlannedStage:
    """One stage on one data set.

    Attributes:
        data, stage: which.
        n: samples; None for a stream, whose length nobody knows.
        forwards: passes of the whole model a sample, decoding steps counted; replays of its layers are not, and a
            backend that runs a copy of the model (TransformerLens) shows none.
        seconds: a sample.
        bytes: of results, a sample.
    """

    data: str
    stage: str
    n: int | None
    forwards: float
    seconds: float
    bytes: float


@dataclass(frozen=True)
class Plan:
    """What the study of one model will cost on one device, one sample after the other.

    Attributes:
        model: its name.
        device: where it was measured, and how many devices the model lies on.
        stages: all of them.
        weights: bytes of the model.
        memory: bytes, the most that was in use while measuring: of the GPUs, or of this process on a CPU.
    """

    model: str
    device: str
    stages: tuple[PlannedStage, ...]
    weights: int
    memory: int

    @property
    def seconds(self) -> float:
        """Of everything; infinite where a data set is a stream."""
        return self._total("seconds")

    @property
    def forwards(self) -> float:
        """Of everything."""
        return self._total("forwards")

    @property
    def bytes(self) -> float:
        """On disk."""
        return self._total("bytes")

    def _total(self, what: str) -> float:
        if any(stage.n is None for stage in self.stages):
            return float("inf")
        return float(sum((stage.n or 0) * getattr(stage, what) for stage in self.stages))

    def to_pandas(self) -> pandas.DataFrame:
        """One row a stage: data, stage, samples, forwards, hours, megabytes."""
        import pandas

        return pandas.DataFrame(
            [
                {
                    "data": stage.data,
                    "stage": stage.stage,
                    "samples": stage.n,
                    "forwards": round(stage.forwards * (stage.n or 1)),
                    "hours": stage.seconds * (stage.n or 1) / 3600,
                    "megabytes": stage.bytes * (stage.n or 1) / 1e6,
                }
                for stage in self.stages
            ]
        )

    def __repr__(self) -> str:
        return (
            f"Plan of {self.model} on {self.device}: {self.forwards:,.0f} forwards, {self.seconds / 3600:.2g} hours, "
            f"{self.memory / 1e9:.2g} GB of memory ({self.weights / 1e9:.2g} GB of weights), "
            f"{self.bytes / 1e6:.3g} MB on disk"
        )


def plan_heads(
    lens: Lens, name: str, data: Mapping[str, DataSet], text: Mapping[str, DataSet], settings: HeadSettings
) -> Plan:
    """What `study_heads` would cost; arguments and errors as there."""
    check_data("heads", data, text)
    rule, _ = sinks_of(lens, {key: each.take(_few(each)) for key, each in data.items()})
    few = {key: each.take(_few(each)) for key, each in data.items()}
    chosen = choose({key: look(lens, each, rule, settings.queries) for key, each in few.items()}, few, settings)
    stages: list[PlannedStage] = []
    with _peak(lens) as peak:
        for key, each in data.items():
            n = _length(each)
            half = None if n is None else n // 2
            stages += [
                _measured(lens, key, "looks", n, few[key], lambda part: look(lens, part, rule, settings.queries)),
                _measured(lens, key, "effects", half, few[key], lambda part: head_effects(lens, part)),
                _measured(lens, key, "removed", half, few[key], lambda part: ablate(lens, part, chosen)),
            ]
        for key, each in text.items():
            part = each.take(_few(each))
            stages.append(_measured(lens, key, "removed", _length(each), part, lambda part: ablate(lens, part, chosen)))
    return Plan(name, _where(lens), tuple(stages), _weights(lens), peak[0])


def plan_sinks(lens: Lens, name: str, data: Mapping[str, DataSet], settings: SinkSettings) -> Plan:
    """What `study_sinks` would cost; arguments and errors as there."""
    check_data("sinks", data, {})
    rule, _ = sinks_of(lens, {key: each.take(_few(each)) for key, each in data.items()})
    stages: list[PlannedStage] = []
    with _peak(lens) as peak:
        for key, each in data.items():
            part, n = each.take(_few(each)), _length(each)
            stages.append(_measured(lens, key, "looks", n, part, lambda part: look(lens, part, rule)))
            if rule is not None:
                under = conditions(key, rule, settings)
                metric = settings.metrics.get(key, settings.metric)

                def answers(part: DataSet, under: Any = under, metric: str = metric) -> Any:
                    with counted(NothingChangedWarning):
                        return compare(
                            lens,
                            part,
                            under,
                            metric,
                            controls=settings.controls,
                            max_new_tokens=settings.max_new_tokens,
                        )

                stages.append(_measured(lens, key, "answers", n, part, answers))
    return Plan(name, _where(lens), tuple(stages), _weights(lens), peak[0])


def _few(data: DataSet) -> int:
    """How many samples a plan is measured on: two, or two groups where some count only together."""
    return N_MEASURED * data.per_unit


def _length(data: DataSet) -> int | None:
    try:
        return len(data)
    except TypeError:
        return None


def _measured(lens: Lens, key: str, stage: str, n: int | None, few: DataSet, run: Stage) -> PlannedStage:
    """One stage on the first samples, the second time."""
    one = few.take(few.per_unit)
    with _counted(lens) as before:
        run(one)
    with _counted(lens) as forwards:
        start = time.perf_counter()
        found = run(few)
        seconds = time.perf_counter() - start
    start = time.perf_counter()
    assert lens.identity
    seconds = max(0.0, seconds - (time.perf_counter() - start))
    n_few, n_one = sum(1 for _ in few), sum(1 for _ in one)
    each = (forwards[0] - before[0]) / (n_few - n_one) if n_few > n_one else forwards[0] / n_few
    return PlannedStage(key, stage, n, each, seconds / n_few, _size(found) / n_few)


def _size(found: Any) -> int:
    """Bytes of a stage's results."""
    tensors = [value for value in vars(found).values() if isinstance(value, torch.Tensor)]
    tensors += [x for each in vars(found).values() if hasattr(each, "tensors") for x in each.tensors().values()]
    return len(files.packed("plan", {str(i): each for i, each in enumerate(tensors)}, {}))


@contextmanager
def _counted(lens: Lens) -> Iterator[list[int]]:
    """Inside, passes of the whole model are counted."""
    n = [0]

    def count(*_: object) -> None:
        n[0] += 1

    hook = lens.model.register_forward_pre_hook(count)
    try:
        yield n
    finally:
        hook.remove()


@contextmanager
def _peak(lens: Lens) -> Iterator[list[int]]:
    """Afterwards, the most memory that was in use: of all GPUs, or of this process."""
    most = [0]
    if lens.device.type == "cuda":
        for device in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(device)
    yield most
    if lens.device.type == "cuda":
        most[0] = sum(torch.cuda.max_memory_allocated(device) for device in range(torch.cuda.device_count()))
    else:
        import resource

        most[0] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _weights(lens: Lens) -> int:
    return sum(each.numel() * each.element_size() for each in lens.model.parameters())


def _where(lens: Lens) -> str:
    devices = sorted({str(each.device) for each in lens.model.parameters()})
    return devices[0] if len(devices) == 1 else f"{len(devices)} devices ({', '.join(devices)})"
