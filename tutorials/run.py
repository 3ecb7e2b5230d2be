"""Run the notebooks of this folder, each from top to bottom in a fresh kernel.

    python tutorials/run.py                 # execute all, write their outputs into the files
    python tutorials/run.py 03 05           # only these
    python tutorials/run.py --check         # write nothing; fail where text outputs are not those in the files

Outputs are compared up to rounding: two numbers may differ by 2 units of their last printed digit, or by 2%.
"""

from __future__ import annotations

import argparse
import copy
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nbformat

FOLDER = Path(__file__).parent
SECONDS = 1200  # for one cell, on a crowded machine
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
SHARE = 0.02  # by which two numbers may differ
UNITS = 2  # of the last printed digit


def notebooks(chosen: Sequence[str] = ()) -> list[Path]:
    """The notebooks whose names begin with one of these, or all, in order.

    Raises:
        SystemExit: a name fits none.
    """
    every = sorted(FOLDER.glob("*.ipynb"))
    for name in chosen:
        if not any(path.name.startswith(name) for path in every):
            sys.exit(f"no notebook begins with {name!r}; there are {', '.join(path.stem for path in every)}")
    return [path for path in every if not chosen or any(path.name.startswith(name) for name in chosen)]


def executed(path: Path) -> Any:
    """The notebook with fresh outputs; the file stays as it is.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    from nbclient import NotebookClient

    quiet = {"TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore:IProgress not found"}
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **quiet}
    os.environ.pop("MPLBACKEND", None)  # pictures belong into the notebook
    notebook = copy.deepcopy(nbformat.read(path, as_version=4))
    how: dict[str, Any] = {"timeout": SECONDS, "kernel_name": "python3", "record_timing": False}
    how["extra_arguments"] = ["--log-level=ERROR"]
    NotebookClient(notebook, resources={"metadata": {"path": str(path.parent)}}, **how).execute()
    return _clean(notebook)


def _clean(notebook: Any) -> Any:
    """Without what changes from machine to machine, so that a new run of the same code changes nothing."""
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = list(_joined(cell.outputs))
    return notebook


def _joined(outputs: Sequence[Any]) -> Iterator[Any]:
    """Outputs without their metadata; what is printed comes in pieces of any length, and is put together."""
    last = None
    for output in outputs:
        if output.output_type == "stream" and last is not None and last.get("name") == output.name:
            last.text += output.text
            continue
        last = output
        if output.output_type in ("display_data", "execute_result"):
            output.metadata = {}
        yield output


def texts(notebook: Any) -> list[str]:
    """What each code cell says in plain text, pictures and pages left out."""
    return ["\n".join(_said(output) for output in cell.outputs) for cell in notebook.cells if cell.cell_type == "code"]


def _said(output: Any) -> str:
    if output.output_type == "stream":
        return output.text
    if output.output_type == "error":
        return f"{output.ename}: {output.evalue}"
    return output.data.get("text/plain", "")


def differences(committed: Any, fresh: Any) -> Iterator[str]:
    """Where two runs of a notebook say something else, in words."""
    pairs = zip(texts(committed), texts(fresh), strict=True)
    for number, (before, now) in enumerate(pairs, 1):
        if not same(before, now):
            yield f"code cell {number} said\n{before}\n  and now says\n{now}"


def same(one: str, other: str) -> bool:
    """Whether two texts are equal up to the rounding of their numbers and the width of their columns.

    >>> same("mean 0.671, n 140", "mean 0.672,  n 140")
    True
    >>> same("L1H4 0.67", "L1H5 0.67")
    False
    """
    words = (re.sub(r"\s+|-{2,}", " ", NUMBER.sub(_placeholder, text)).strip() for text in (one, other))
    if len(set(words)) > 1:
        return False
    pairs = zip(NUMBER.findall(one), NUMBER.findall(other), strict=True)
    return all(_close(a, b) for a, b in pairs)


def _placeholder(match: re.Match[str]) -> str:
    """Whole numbers are names and counts, and stay; the others are compared as numbers."""
    return "#" if "." in match[0] or "e" in match[0] else match[0].removeprefix("-")


def _close(a: str, b: str) -> bool:
    step = max(10.0 ** -len(x.partition("e")[0].partition(".")[2]) for x in (a, b))
    return abs(float(a) - float(b)) <= max(UNITS * step * ("." in a), SHARE * max(abs(float(a)), abs(float(b))))


def main() -> None:
    """The command line."""
    from nbclient.exceptions import CellExecutionError

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="how the names begin, as 03; all by default")
    parser.add_argument("--check", action="store_true", help="compare with the outputs in the files, write nothing")
    arguments = parser.parse_args()
    failed = False
    for path in notebooks(arguments.names):
        started = time.perf_counter()
        try:
            fresh = executed(path)
        except CellExecutionError as error:
            print(f"{path.name}: failed\n{error}", flush=True)
            failed = True
            continue
        seconds = time.perf_counter() - started
        found = list(differences(nbformat.read(path, as_version=4), fresh)) if arguments.check else []
        if not arguments.check:
            nbformat.write(fresh, path)
        failed |= bool(found)
        print(f"{path.name}: {seconds:.0f} s{', other outputs' * bool(found)}", *found, sep="\n", flush=True)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
