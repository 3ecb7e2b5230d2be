"""How a sweep scales over Ray workers on one machine: `python -m benchmarks.cluster`.

Wall-clock, once the workers are up and busy; so the machine has to be idle, and have a core for each worker.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from lmm_lens import Lens, data, head_effects

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


def main() -> None:
    """Measure, print, write."""
    torch.set_num_threads(1)
    lens = Lens.demo()
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
        f"zeroed in all rows, {N_PROMPTS} prompts with their run folder; medians of {ROUNDS} rounds."
    )
    show(lines, notes)
    write(lines, "Sweeps over Ray workers on one machine", notes, RESULTS / "cluster.md")


if __name__ == "__main__":
    main()
