"""`make ndif`: the wire tests and every call on four families, asked of NDIF's own server, and a page of what came.

    python -m tests.backends.remote.ndif .venv/ndif

Takes over half an hour on two cores: NDIF starts a Python for each request. What it started is stopped also where
something fails.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.support.torchvision_cpu import load

load()  # before transformers, which looks for torchvision once

from lmm_lens import Lens  # noqa: E402
from lmm_lens.bundled import shapes  # noqa: E402
from tests.backends.remote import stand_in  # noqa: E402
from tests.backends.remote.ndif.calls import Family, difference  # noqa: E402
from tests.backends.remote.ndif.server import NDIF  # noqa: E402
from tests.support.families import lens_of  # noqa: E402

ROOT = Path(__file__).parents[4]
RESULT = ROOT / "benchmarks" / "results" / "ndif.md"
REMOTE = Path("tests") / "backends" / "remote"
SUITE = [
    str(REMOTE / f"test_{name}.py") for name in ("wire_runs", "wire_edits", "wire_experiments", "wire_user", "sweeps")
]
BUNDLED = "lmm-lens/shapes-llava"
TINY = ("qwen2_5_vl", "llava_next", "gemma3")
EVERY = ("suite", "shapes-llava", *TINY)
PARTS = ROOT / "build" / "ndif"
"""Sections of the page, each of the last run that it was in, and what the services said last."""
TOLERANCE = 1e-4
INTRODUCTION = """# NDIF's own server

What `make ndif` last saw: ndif {ndif} with nnsight {nnsight}, transformers {transformers}, torch {torch} and Python
{python}, every request in its sandbox, on a CPU in fp32; asked by lmm-lens {ours} with nnsight {own_nnsight} and Python
{own_python}. `shapes-llava` is the bundled model; the others are tiny and random, with the families' own processors.

{suite}

A call is made on the server and by the native backend here; the difference is the largest of all numbers that come
back: logits of every position or step, reads, tokens. It has to be below {tolerance:g}. Bytes are those of all requests
and results of the call, after compression. Seconds are the server's start of a new Python for each request, mostly.
"""


def main() -> None:
    """Do it all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("environment", type=Path, help="made of requirements.txt")
    parser.add_argument("--port", type=int, default=18000)
    parser.add_argument("--only", nargs="*", default=EVERY, choices=EVERY, help="these again; the page has all parts")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # what was started is stopped
    PARTS.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, NDIF(options.environment, options.port, PARTS / "logs") as server:
        print(f"NDIF answers at {server.url} after {time.monotonic() - started:.0f} s", flush=True)
        folders = dict(saved(Path(folder)))
        server.deploy({BUNDLED: folders["shapes-llava"], **{str(path): path for path in folders.values()}})
        print(f"{len(folders)} models are deployed after {time.monotonic() - started:.0f} s", flush=True)
        seen, found = server.versions(), {}
        for name in options.only:
            done = tests(server, folders["shapes-llava"]) if name == "suite" else table(name, folders[name], server)
            (PARTS / f"{name}.md").write_text(done[0] if done[1] else "", encoding="utf-8")
            found[name] = done[1]
    right = all(found.values())
    texts = {name: _read(PARTS / f"{name}.md") for name in EVERY}
    if all(texts.values()):
        own = {"ours": version("lmm-lens"), "own_nnsight": version("nnsight"), "own_python": platform.python_version()}
        names = ("ndif", "nnsight", "transformers", "torch", "python")
        told = own | {name: seen.get(name, "?") for name in names}
        first = INTRODUCTION.format(suite=texts.pop("suite"), tolerance=TOLERANCE, **told)
        RESULT.write_text("\n".join([first, *texts.values()]), encoding="utf-8")
    print(f"{time.monotonic() - started:.0f} s in all")
    raise SystemExit(0 if right else "NOT as on the native backend: see above")


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def saved(folder: Path) -> Iterator[tuple[str, Path]]:
    """Checkpoint folders of the four families, by name."""
    for part in shapes.load("sinks"):
        part.save_pretrained(folder / "shapes-llava")
    yield "shapes-llava", folder / "shapes-llava"
    for name in TINY:
        lens = lens_of(name)
        lens.model.save_pretrained(folder / name)
        lens.processor.save_pretrained(folder / name)
        yield name, folder / name


def tests(server: NDIF, folder: Path) -> tuple[str, bool]:
    """What pytest says of the wire tests, and of what is asked of a hosted server; whether all of it passes."""
    environment = os.environ | {
        stand_in.VARIABLE: server.url,
        "LMM_LENS_NDIF_MODEL": str(folder),
        "NDIF_API_KEY": "a-key-that-nobody-checks",
        "NDIF_HOST": server.url,
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-ra", "-p", "no:cacheprovider"]
    lines, right = [], True
    for what, files in (("wire tests", SUITE), ("test_ndif.py", [str(REMOTE / "test_ndif.py")])):
        done = subprocess.run(
            [*command, *files], cwd=ROOT, env=environment, text=True, capture_output=True, check=False
        )
        print(done.stdout[-12000:], flush=True)
        right &= done.returncode == 0
        lines.append(f"{what}: {done.stdout.strip().splitlines()[-1].strip('= ')}")
    return "; ".join(lines), right


@contextmanager
def quiet() -> Iterator[None]:
    """Neither progress nor warnings of edits that change nothing."""
    import nnsight

    nnsight.CONFIG.APP.REMOTE_LOGGING = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def table(name: str, path: Path, server: NDIF) -> tuple[str, bool]:
    """The calls on one family as a Markdown section; whether all are right."""
    here = Lens.from_pretrained(str(path))
    there = Lens.from_pretrained(str(path), backend="nnsight", remote=server.url, timeout=300)
    lines = [f"## {name}", "", "| call | difference | sent | received | seconds |", "| --- | --- | --- | --- | --- |"]
    right = True
    with quiet():
        for what, call in Family(name, here, there).calls():
            row, is_right = asked(call, here, there)
            lines.append(f"| {what} | {row} |")
            right &= is_right
            print(f"{name}: {what}: {row}" + ("" if is_right else "  <<< WRONG"), flush=True)
    return "\n".join([*lines, ""]), right


def asked(call: Callable[[Lens], Any], here: Lens, there: Lens) -> tuple[str, bool]:
    """One call as cells of a table, and whether it is right."""
    n_before, started = len(stand_in.LOG), time.monotonic()
    try:
        given = call(there)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]} | | |", False
    seconds, jobs = time.monotonic() - started, stand_in.LOG[n_before:]
    far = difference(given, call(here))
    sent, received = (sum(job.get(key, 0) for job in jobs) for key in ("payload_bytes", "result_bytes"))
    return f"{far:.0e} | {sent:,} | {received:,} | {seconds:.1f}", far < TOLERANCE


if __name__ == "__main__":
    stand_in.keep_a_log()
    main()
