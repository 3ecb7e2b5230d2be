"""Kills sweeps at many moments; a process of its own, so that each is a cheap fork of one that has torch loaded.

Prints JSON: how many sweeps were killed, how many of them while they wrote a file, how many ran to their end, and
whether each of those ended with the very numbers of a sweep that nobody killed.
"""

import json
import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path

import torch

from lmm_lens.runs import RunFolder, stream

N, KILLS = 40, 30


def work(item: int) -> dict[str, torch.Tensor]:
    """A quarter of a megabyte that takes some milliseconds."""
    x = torch.randn(256, 256, generator=torch.Generator().manual_seed(item))
    return {"x": torch.tanh(x @ x / 20), "index": torch.tensor(item)}


def sweep(path: Path) -> None:
    with RunFolder(path, "killed", {"n": N}) as folder:
        stream(range(N), lambda: work, str, folder, seconds_per_part=0.01)
        folder.finish(N)


def forked(path: Path) -> int:
    child = os.fork()
    if not child:
        code = 1
        try:
            sweep(path)
            code = 0
        finally:
            os._exit(code)
    return child


def ended(child: int, wait: bool = False) -> bool:
    """Whether it ended by itself; an error in it ends everything."""
    pid, status = os.waitpid(child, 0 if wait else os.WNOHANG)
    if pid and not os.WIFSIGNALED(status):
        assert os.WEXITSTATUS(status) == 0, "a sweep failed"
        return True
    return False


def killed(child: int, path: Path, seconds: float, in_write: bool) -> bool:
    """Kill it after so many seconds, or then as soon as it writes a file. False if it ended before."""
    end = time.monotonic() + seconds
    while time.monotonic() < end or (in_write and not half_files(path)):
        if ended(child):
            return False
    os.kill(child, signal.SIGKILL)
    return not ended(child, wait=True)


def half_files(path: Path) -> bool:
    folders = (path, path / "parts")
    return any(name.endswith(".new") for folder in folders if folder.is_dir() for name in os.listdir(folder))


def finished(path: Path) -> set[int]:
    if not (path / "manifest.json").exists():
        return set()
    return {index for at in RunFolder.open(path).ranges for index in at}


def main(root: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error")  # a damaged part is told with one
    wanted = {name: torch.stack([work(item)[name] for item in range(N)]) for name in ("x", "index")}
    chance = random.Random(0)
    found = {"kills": 0, "in_write": 0, "ends": 0, "same": 0, "lost": 0}
    while found["kills"] < KILLS or not found["ends"]:
        path = root / f"run{found['ends']}"
        before = finished(path)
        seconds = chance.uniform(0, 0.15) if found["kills"] < KILLS else 60.0  # in the end one goes through
        if killed(forked(path), path, seconds, chance.random() < 0.5):
            found["kills"] += 1
            found["in_write"] += half_files(path)
        else:
            found["ends"] += 1
            now = RunFolder.open(path)
            assert now.finished
            found["same"] += all(torch.equal(now.tensors()[name], wanted[name]) for name in wanted)
        found["lost"] += len(before - finished(path))
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
