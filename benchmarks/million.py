"""A sweep of a million items through the real run folder and real Ray workers, with a model that costs nothing.

`python -m benchmarks.million [--items 1000000]`: what is ours of a sweep's price, and that its memory stays flat.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from lmm_lens.runs import RayLike, RunFolder, stream

from .timing import machine, show, write

RESULTS = Path(__file__).parent / "results"
N_UNITS = 64
"""Ablations an item; each keeps 29 bytes, as a real sweep's does."""


def fake(item: int) -> dict[str, Tensor]:
    """What a sweep over heads keeps of an item, of no meaning."""
    n = 1 + N_UNITS
    logits = torch.full((n, 2), float(item), dtype=torch.float64)
    said = torch.full((n,), item % 1000, dtype=torch.int32)
    return {"logits": logits, "log_sum": logits[:, 0], "said": said, "marks": said.to(torch.int8)}


def resident() -> float:
    """MiB of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


class Watched:
    """The items, noting time and memory now and then."""

    def __init__(self, n: int) -> None:
        self.n, self.seen = n, list[tuple[int, float, float]]()

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        for item in range(self.n):
            if item % max(1, self.n // 20) == 0:
                self.seen.append((item, time.monotonic(), resident()))
            yield item


def key_of(item: int) -> str:
    """Of the length of a real one."""
    return f"data/{item:08d}\tquestion:{item:016x} answers:{item:016x} picture:{item:016x} labels:{item:016x}"


def sweep(n: int, ray: RayLike) -> tuple[float, float, float, float, float]:
    """Items a second, MiB after a tenth and at the end, MiB on disk, and seconds to open the folder again."""
    items = Watched(n)
    with TemporaryDirectory() as place:
        with RunFolder(Path(place) / "run", "nothing", {}) as folder:
            start = time.monotonic()
            stream(items, lambda: fake, key_of, folder, ray=ray)
            folder.finish(n)
            seconds = time.monotonic() - start
        on_disk = sum(path.stat().st_size for path in Path(place).rglob("*") if path.is_file()) / 2**20
        start = time.monotonic()
        again = RunFolder.open(Path(place) / "run")
        opening = time.monotonic() - start
        assert again.n_items == n
        assert again.finished
        worst = next(again.parts()).tensors["logits"][:, 0, 0]
        assert torch.equal(worst, torch.arange(len(worst)).double())
    return n / seconds, items.seen[len(items.seen) // 10][2], items.seen[-1][2], on_disk, opening


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.million", description=__doc__)
    parser.add_argument("--items", type=int, default=1_000_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [["", "items a second", "MiB after a tenth", "MiB at the end", "MiB on disk", "s to open again"]]
    for name, ray in (("here", None), ("two Ray workers", 2)):
        found = sweep(options.items, ray)
        lines.append([name, f"{found[0]:,.0f}", *(f"{each:,.0f}" for each in found[1:4]), f"{found[4]:.1f}"])
        show(lines, "")
    notes = (
        f"{machine(torch.device('cpu'))}. {options.items:,} items of {N_UNITS} ablations whose work costs nothing: "
        "all of this is serialisation, handing out and writing. Memory is that of the process that writes."
    )
    write(lines, "A million items, and what is ours of them", notes, RESULTS / "million.md")


if __name__ == "__main__":
    main()
