"""How a sweep scales over Ray workers on one machine: `python -m benchmarks.cluster`.

Wall-clock, once the workers are up and busy; so the machine has to be idle, and have a core for each worker.
"""

from __future__ import annotations

import os
import pickle
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from ray import cloudpickle

from lmm_lens import Lens, data, head_effects
from lmm_lens.answers.items import Items, key_of
from lmm_lens.effects.ablations import Ablation, units_of
from lmm_lens.effects.work import MakeEffectsWork
from lmm_lens.lens.travelling import TravellingLens
from lmm_lens.runs import RunFolder
from lmm_lens.runs.job import Job, do
from lmm_lens.runs.saving import Saving

from .timing import machine, show, write

RESULTS = Path(__file__).parent / "results"
N_PROMPTS, ROUNDS, WORKERS = 240, 3, (None, 1, 2)


class Clock:
    """Samples that note when each was asked for; a stream reads ahead only a little, so that is the workers' pace."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self.samples = list(data.shapes(n=N_PROMPTS, seed=0))

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[data.Sample]:
        for sample in self.samples:
            self.asked.append(time.monotonic())
            yield sample


def rate(lens: Lens, workers: int | None) -> float:
    """Prompts a second while all workers are busy: neither starting nor stopping Ray counts."""
    clock, start = Clock(), N_PROMPTS // 4
    with TemporaryDirectory() as folder:
        head_effects(lens, clock, rows="all", ray=workers, folder=f"{folder}/run")
    return (N_PROMPTS - 1 - start) / (clock.asked[-1] - clock.asked[start])


def per_call(function: Callable[[], object], n: int = 20) -> float:
    """Milliseconds of one call, the median."""
    times = []
    for _ in range(n):
        start = time.thread_time()
        function()
        times.append(time.thread_time() - start)
    return statistics.median(times) * 1000


def ours(lens: Lens) -> str:
    """What this library and Ray's serialisation do for a prompt and for a worker, beside the model's work."""
    samples = list(data.shapes(n=1, seed=0))
    (item,) = Items(samples, None, "")
    fresh = iter(list(Items(list(data.shapes(n=40, seed=1)), None, "")))  # a sample keeps its digests
    ablation = Ablation(units_of(lens, None), "zero", "all")
    make = MakeEffectsWork(TravellingLens.of(lens, lens.identity, travels=True), ablation, None)
    done = do(Job(0, key_of(item), item), make(), "measuring")
    with TemporaryDirectory() as folder, RunFolder(f"{folder}/run", "benchmark", {}) as opened:
        saving, indices = Saving(opened, 0), count()
        ms = {
            "digests": per_call(lambda: key_of(next(fresh))),
            "prompt": per_call(lambda: samples[0].prompt(lens)),
            "there": per_call(lambda: cloudpickle.loads(cloudpickle.dumps(item))),
            "back": per_call(lambda: pickle.loads(pickle.dumps(done))),
            "written": per_call(lambda: saving.add(replace(done, index=next(indices)))),
            "opened": per_call(Lens.demo, 3),
            "known": per_call(lambda: lens.identity),
        }
    sizes = [len(cloudpickle.dumps(item)), len(pickle.dumps(done)), len(cloudpickle.dumps(make))]
    return (
        f"Of a prompt, in ms: its digests {ms['digests']:.2f}; making it {ms['prompt']:.2f}, in a worker while the "
        f"model computes; {sizes[0]:,} bytes there {ms['there']:.2f} and {sizes[1]:,} back {ms['back']:.2f}; a part "
        f"of one item written {ms['written']:.2f}. Of a worker: {sizes[2]:,} bytes say what to do, opening the model "
        f"takes {ms['opened']:.0f} and knowing that it is the same one {ms['known']:.0f}."
    )


def main() -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    lens = Lens.demo()
    parts = ours(lens)
    found: dict[int | None, list[float]] = {workers: [] for workers in WORKERS}
    for _ in range(ROUNDS):
        for workers, rates in found.items():
            rates.append(rate(lens, workers))
    one = statistics.median(found[1])
    lines = [["", "prompts a second", "beside one worker", "rounds"]]
    for workers, rates in found.items():
        name = "without Ray" if workers is None else f"{workers} Ray worker{'s' * (workers > 1)}"
        middle = statistics.median(rates)
        lines.append([name, f"{middle:.1f}", f"{middle / one:.2f}", ", ".join(f"{each:.1f}" for each in rates)])
    notes = (
        f"{machine(torch.device('cpu'))}; {os.cpu_count()} cores, one thread a worker. The bundled model, every head "
        f"zeroed in all rows, {N_PROMPTS} prompts with their run folder; medians of {ROUNDS} rounds. {parts}"
    )
    show(lines, notes)
    write(lines, "Sweeps over Ray workers on one machine", notes, RESULTS / "cluster.md")


if __name__ == "__main__":
    main()
