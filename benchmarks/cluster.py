"""How a sweep scales from one Ray worker to two, on one machine: wall-clock items a second once the workers are up."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from tempfile import TemporaryDirectory

from lmm_lens import Lens, data, head_effects

N_PROMPTS, ROUNDS = 240, 3


def scaling() -> str:
    """A sentence with the median rates and their ratio, or why there is none."""
    lens = Lens.demo()
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(ROUNDS):
        for workers, found in rates.items():
            found.append(_rate(lens, workers))
    one, two = (statistics.median(found) for found in rates.values())
    return (
        f"Ray on one machine with two cores, bundled model, all rows, {N_PROMPTS} prompts: {one:.1f} prompts a second "
        f"with one worker, {two:.1f} with two, {two / one:.2f} times as many (medians of {ROUNDS}; between the first "
        "and the last result, so that starting Ray does not count)."
    )


class _Clock:
    """Samples that note when the first half of them has been asked for."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self.samples = list(data.shapes(n=N_PROMPTS, seed=0))

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[data.Sample]:
        for sample in self.samples:
            self.asked.append(time.monotonic())
            yield sample


def _rate(lens: Lens, workers: int) -> float:
    """Prompts a second. The stream reads ahead only a little, so requests follow the workers' pace."""
    clock = _Clock()
    with TemporaryDirectory() as folder:
        head_effects(lens, clock, rows="all", ray=workers, folder=f"{folder}/run")
    end = time.monotonic()
    start = N_PROMPTS // 4  # by then the workers are up and busy
    return (N_PROMPTS - start) / (end - clock.asked[start])
