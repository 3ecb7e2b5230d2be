"""Time and peak memory of small functions on a shared machine, and the table that reports them.

On the CPU the time is what the calling thread computed (`time.thread_time`), which other processes disturb far less
than the wall clock; it needs torch on one thread. On a GPU it is the time between two events in the stream, including
gaps in which the GPU waits for Python.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler prints when it starts and stops


def seconds(
    function: Callable[[], object], device: torch.device, clock: Callable[[], float] = time.thread_time
) -> float:
    """How long one call takes, in seconds; on the CPU by a clock, the process's for work in several threads."""
    if device.type != "cuda":
        start = clock()
        function()
        return clock() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begin.record()
    function()
    end.record()
    torch.cuda.synchronize(device)
    return float(begin.elapsed_time(end)) / 1000


def interleaved(
    functions: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device,
    clock: Callable[[], float] = time.thread_time,
) -> dict[str, list[float]]:
    """Seconds of every call, by name, round by round: in each round every function runs once, in random order.

    So a machine that slows down for a while slows all of them, and none always follows the same neighbour.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    order = random.Random(0)
    for _ in range(rounds):
        for name in order.sample(list(functions), len(functions)):
            times[name].append(seconds(functions[name], device, clock))
    return times


def spread(times: Sequence[float]) -> float:
    """How far the middle half of some times lies apart, as a share of their median."""
    first, middle, third = statistics.quantiles(times, n=4, method="inclusive")
    return (third - first) / middle


def peak_bytes(function: Callable[[], object], device: torch.device) -> int:
    """The most bytes of tensors that a call holds at once, above what was held before it.

    On the CPU the profiler records the allocator itself, so what operators hold inside counts too.
    """
    gc.collect()
    if device.type == "cuda":
        function()  # the first call allocates the workspaces of libraries, which stay
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        function()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def resident_peak(function: Callable[[], object]) -> tuple[int, int]:
    """The most bytes of memory that this process has while a call runs, and how many of them it had before; Linux."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before goes back, or it would count for nothing
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak counts from here
    function()
    return _status("VmHWM"), before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def machine(device: torch.device) -> str:
    """What it ran on, with which versions, and when."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        known = Path("/proc/cpuinfo")
        lines = known.read_text().splitlines() if known.exists() else []
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        name = f"{models[0] if models else platform.machine()} CPU, {torch.get_num_threads()} thread"
    return f"{name}; torch {torch.__version__}, transformers {transformers.__version__}; {date.today()}"


def show(lines: Sequence[Sequence[str]], notes: str) -> None:
    """Print a table, the header first."""
    table = Table()
    for index, name in enumerate(lines[0]):
        table.add_column(name, justify="right" if index else "left")
    for line in lines[1:]:
        table.add_row(*(cell.replace("`", "") for cell in line))
    console = Console()
    console = console if console.is_terminal else Console(width=200)
    console.print(table)
    console.print(notes, highlight=False)


def table(lines: Sequence[Sequence[str]]) -> str:
    """A table as Markdown, the header first."""
    rows = ["| " + " | ".join(line) + " |" for line in lines]
    rule = "| --- |" + " ---: |" * (len(lines[0]) - 1)
    return "\n".join([rows[0], rule, *rows[1:]])


def write(lines: Sequence[Sequence[str]], title: str, notes: str, path: Path, *more: Sequence[Sequence[str]]) -> None:
    """Write a table, and others below it, as Markdown, under a title and above notes."""
    path.parent.mkdir(exist_ok=True)
    tables = "\n\n".join(table(each) for each in (lines, *more))
    path.write_text(f"# {title}\n\n{tables}\n\n{notes}\n")
